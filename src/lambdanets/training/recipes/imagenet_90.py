"""The paper's 90-epoch training, with which it compares layers: ResNet-50 with lambda layers, 224 pixels.

    torchrun --nproc-per-node 8 -m lambdanets train --recipe imagenet-90 --data imagenet/

Hardware: 8 GPUs. Result: not yet run; the paper reports 78.4 % top-1 (table 3). The best epoch is chosen by 2 % of the
training images, and the images of val/ are the test. Mixed precision is chosen here, not the paper's.
"""

from lambdanets.training.recipes.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="imagenet-90",
    model="lambda_resnet50_llll",
    data=None,
    image_size=224,
    crop_pct=0.875,
    validation_share=0.02,
    epochs=90,
    batch_size=1024,
    optimizer="sgd",  # Nesterov momentum, as timm's "sgd" is
    lr=0.1,
    lr_batch_size=256,
    momentum=0.9,
    weight_decay=1e-4,
    warmup_epochs=5,
    label_smoothing=0.1,
    augmentation=Augmentation(crop="resized", scale=(0.08, 1.0), horizontal_flip=0.5),
    precision="bf16",
    workers=8,
)
