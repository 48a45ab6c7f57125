"""The paper's 350-epoch training, with which it trains the LambdaResNet family: RandAugment, moving average.

    torchrun --nproc-per-node 8 -m lambdanets_cli.app train --recipe imagenet-350 --data imagenet/

The learning rate is that of the 90-epoch training, which was not checked against the paper for this one.
Dropout, stochastic depth and the image size grow with the model's depth there. Not measured here.
"""

from lambdanets.training.recipes.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="imagenet-350",
    model="lambda_resnet50",
    data=None,
    image_size=160,
    crop_pct=0.875,
    epochs=350,
    batch_size=4096,
    optimizer="sgd",
    lr=0.1,
    lr_batch_size=256,
    momentum=0.9,
    weight_decay=4e-5,
    warmup_epochs=5,
    label_smoothing=0.1,
    ema_decay=0.9999,
    drop_rate=0.2,
    drop_path_rate=0.1,
    augmentation=Augmentation(crop="resized", horizontal_flip=0.5, auto_augment="rand-m15-n2"),
    precision="bf16",
    workers=8,
)
