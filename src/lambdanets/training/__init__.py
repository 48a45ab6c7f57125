"""Training, testing and using image classifiers: recipes, data, the loop, run folders."""

from lambdanets.training.engine.fit import TrainingResult, resume, train
from lambdanets.training.engine.loop import TrainingDivergedError
from lambdanets.training.engine.plan import plan_recipe
from lambdanets.training.inference.evaluate import Evaluation, evaluate_run
from lambdanets.training.inference.export import export_run
from lambdanets.training.inference.predict import Prediction, predict_images
from lambdanets.training.inference.publish import publish_run
from lambdanets.training.recipes import get_recipe, list_recipes
from lambdanets.training.recipes.recipe import Augmentation, Recipe
from lambdanets.training.runs.folder import Run

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
    "plan_recipe",
    "predict_images",
    "publish_run",
    "resume",
    "train",
]
