"""Weights that were trained on other images, trained on with one's own: a new classifier, small steps in early layers.

    lambdanets train --recipe finetune --init-from resnet50.a1_in1k --data my-images/
    lambdanets train --recipe finetune --init-from runs/other --data my-images/

The model is that of the weights; the images get the size that the weights were trained with, if they have none of
their own. Hardware: any. Result: not yet run.
"""

from lambdanets.training.recipes.recipe import Augmentation, Recipe

RECIPE = Recipe(
    name="finetune",
    model="lambda_resnet_tiny",
    data=None,
    epochs=20,
    batch_size=64,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    layer_decay=0.75,
    warmup_epochs=2,
    label_smoothing=0.1,
    clip_grad=1.0,
    ema_decay=0.99,
    augmentation=Augmentation(crop="resized", scale=(0.3, 1.0), horizontal_flip=0.5),
    workers=2,
)
