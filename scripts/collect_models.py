"""Count the models on the meta device, and measure what some keep: ``python scripts/collect_models.py``.

Writes results/models.csv.
"""

from pathlib import Path

from lambdanets.experiments.report import models_table
from lambdanets.files import write_csv

if __name__ == "__main__":
    write_csv(Path(__file__).parents[1] / "results" / "models.csv", models_table.run(report=print))
