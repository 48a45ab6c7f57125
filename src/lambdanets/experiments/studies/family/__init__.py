"""The study of whole networks: ``rows.py`` has them, ``study.py`` times and trains them, ``findings.py`` tells.

lambdanets compare family --quick
lambdanets compare family --data imagenet/ --only LambdaResNet-152 --only EfficientNet-B6
"""

from lambdanets.experiments.studies.family.study import STUDY

__all__ = ["STUDY"]
