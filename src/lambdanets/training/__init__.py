"""Training, testing and using image classifiers: recipes, data, the loop, run folders."""

from lambdanets.training.evaluate import Evaluation, evaluate_run
from lambdanets.training.export import export_run
from lambdanets.training.fit import TrainingResult, resume, train
from lambdanets.training.loop import TrainingDivergedError
from lambdanets.training.predict import Prediction, predict_images
from lambdanets.training.recipe import Augmentation, Recipe
from lambdanets.training.recipes import get_recipe, list_recipes
from lambdanets.training.run import Run

__all__ = [
    "Augmentation",
    "Evaluation",
    "Prediction",
    "Recipe",
    "Run",
    "TrainingDivergedError",
    "TrainingResult",
    "evaluate_run",
    "export_run",
    "get_recipe",
    "list_recipes",
    "predict_images",
    "resume",
    "train",
]
