"""A small LambdaResNet on one's own images, a folder for each class.

    lambdanets train --data my-images/

The defaults suit a few thousand to some hundred thousand small images on one machine; choose the size and the
model with ``--image-size`` and ``--model``. Hardware: any. Result: not yet run.
"""

from lambdanets.training.recipes.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="image-folder",
    model="lambda_resnet_tiny",
    data=None,
    image_size=32,
    epochs=30,
    batch_size=64,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
    warmup_epochs=2,
    label_smoothing=0.1,
    ema_decay=0.99,
    augmentation=Augmentation(crop="resized", scale=(0.4, 1.0), horizontal_flip=0.5),
    workers=2,
)
