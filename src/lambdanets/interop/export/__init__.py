"""Export of models to files that run without this package."""

from lambdanets.interop.export.export import Check, Export, ExportDifferenceError, export_model
from lambdanets.kernels.decompositions import decompositions

__all__ = ["Check", "Export", "ExportDifferenceError", "decompositions", "export_model"]
