"""Counts the models for the tables, on the meta device: ``python docs/collect_models.py`` writes results/models.csv."""

from pathlib import Path

from lambdanets.experiments import models_table
from lambdanets.training.files import write_csv

if __name__ == "__main__":
    write_csv(Path(__file__).parents[1] / "results" / "models.csv", models_table.run(report=print))
