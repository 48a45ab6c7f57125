"""Costs of the models, and the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Callable

from lambdanets import files
from lambdanets.markdown_text import markdown_table
from result_tables import RESULTS

__all__ = ["FIGURES", "TABLES"]


def _models(kind: str) -> list[dict[str, str]]:
    return [row for row in files.read_rows(RESULTS / "models.csv") if row["table"] == kind]


def _millions(row: dict[str, str]) -> tuple[str, str]:
    """Our parameters and the paper's in millions; in bold where they differ by more than rounding to a tenth."""
    ours, paper = int(row["parameters"]) / 1e6, row["paper_parameters_m"]
    # The paper gives whole millions for the family, tenths for the comparison.
    digits = 0 if row["table"] == "family" and not row["model"].startswith("lambda_resnet50") else 1
    differs = paper and abs(ours - float(paper)) > 0.501 * 10**-digits
    return f"{ours:.2f}", f"**{paper}**" if differs else paper


def models() -> str:
    """The registered models with their costs and the paper's parameters."""
    lines = []
    for row in _models("family"):
        ours, paper = _millions(row)
        gigas, activations = int(row["multiply_adds"]) / 1e9, int(row["activations"]) / 1e6
        lines.append(
            [f"`{row['model']}`", row["stages"], row["image_size"], ours, paper, f"{gigas:.2f}", f"{activations:.1f}"]
        )
    header = ["model", "stages", "image", "parameters, M", "paper, M", "multiply-adds, G", "activations, M"]
    return markdown_table(header, lines)


def ablation() -> str:
    """The paper's ablation of k, h and u in an all-lambda ResNet-50."""
    lines = []
    for row in _models("ablation"):
        sizes = [part.split("=")[1] for part in row["model"].split()]
        lines.append([*sizes, *_millions(row), f"{int(row['multiply_adds']) / 1e9:.2f}"])
    return markdown_table(["k", "h", "u", "parameters, M", "paper, M", "multiply-adds, G"], lines)


def placement() -> str:
    """Cost of the places of lambda layers in a ResNet-50."""
    lines = [[row["stages"], *_millions(row), f"{int(row['multiply_adds']) / 1e9:.2f}"] for row in _models("placement")]
    return markdown_table(["stages", "parameters, M", "paper, M", "multiply-adds, G"], lines)


def kept() -> str:
    """Bytes that a training step's forward pass keeps, of models side by side."""
    lines = [
        [f"`{row['model']}`", row["image_size"], f"{int(row['kept_bytes']) / 2**20:.1f}"] for row in _models("kept")
    ]
    return markdown_table(["model", "image", "kept, MiB"], lines)


def _count(table: str, model: str, column: str, unit: float, digits: int) -> str:
    row = next(row for row in _models(table) if row["model"] == model)
    return f"{int(row[column]) / unit:.{digits}f}"


TABLES: dict[str, Callable[[], str]] = {"ablation": ablation, "kept": kept, "models": models, "placement": placement}
FIGURES: dict[str, Callable[[], str]] = {
    "llll-multiply-adds": lambda: _count("placement", "LLLL", "multiply_adds", 1e9, 2) + " G",
    "resnet50-activations": lambda: _count("placement", "CCCC", "activations", 1e6, 1) + " M",
}
