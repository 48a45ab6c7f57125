"""The study of sequences and graphs: ``data.py`` reads them, ``networks.py`` has what is trained, ``study.py`` asks."""

from lambdanets.experiments.studies.structure.study import STUDY

__all__ = ["STUDY"]
