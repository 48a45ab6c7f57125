"""Lambda layers of sequences and of graphs with labels of edges (beyond the paper's images, what its text promises).

lambdanets compare structure --quick

``data.py`` reads them, ``networks.py`` has what is trained, ``rows.py`` the layers, ``study.py`` asks, ``findings.py``
tells.
"""

from lambdanets.experiments.studies.structure.study import STUDY

__all__ = ["STUDY"]
