"""The study of memory against resolution: ``rows.py`` has the layers, ``study.py`` measures, ``findings.py`` tells.

lambdanets compare memory --quick
"""

from lambdanets.experiments.studies.memory.study import STUDY

__all__ = ["STUDY"]
