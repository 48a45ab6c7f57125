"""The paper's 350-epoch training, with which it trains the LambdaResNet family: RandAugment, moving average.

    torchrun --nproc-per-node 8 -m lambdanets train --recipe imagenet-350 --data imagenet/
    torchrun --nproc-per-node 8 -m lambdanets train --recipe imagenet-350 --model lambda_resnet152 --data imagenet/

Hardware: 8 GPUs. Result: not yet run; the paper reports 84.0 % top-1 for LambdaResNet-152, 84.3 for -200 and 84.9 for
-420. Regularisation and image size grow with the depth (``BY_MODEL``). The paper's own are the batch, RandAugment with
2 layers of magnitude 15 at every depth, label smoothing, weight decay, the range 0.2 to 0.3 of the dropout, the range
128 to 320 of the image size and 320 for LambdaResNet-420. Chosen here, for want of the paper's: which depth has which
dropout, the sizes between (as of the models in timm's registry), the rates of stochastic depth, the decay of the
moving average, and the learning rate and warm-up, which are those of the 90 epochs.
"""

from lambdanets.training.recipes.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="imagenet-350",
    model="lambda_resnet50",
    data=None,
    image_size=160,
    crop_pct=0.875,
    validation_share=0.02,
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

# What another model than that of RECIPE changes.
BY_MODEL = {
    "lambda_resnet101": {"image_size": 192},
    "lambda_resnet152": {"image_size": 256},
    "lambda_resnet200": {"image_size": 256, "drop_rate": 0.25, "drop_path_rate": 0.2},
    "lambda_resnet270": {"image_size": 256, "drop_rate": 0.25, "drop_path_rate": 0.2},
    "lambda_resnet350": {"image_size": 288, "drop_rate": 0.3, "drop_path_rate": 0.2},
    "lambda_resnet420": {"image_size": 320, "drop_rate": 0.3, "drop_path_rate": 0.2},
}
