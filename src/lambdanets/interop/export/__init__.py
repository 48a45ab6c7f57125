"""Models in files that run without this package."""

from lambdanets.interop.export.export import Check, Export, ExportDifferenceError, export_model

__all__ = ["Check", "Export", "ExportDifferenceError", "export_model"]
