"""Explanations of a model's lambda layers on one example: the maps S, what the layers have learnt, what decides."""

from lambdanets.explanation.checks import Check, ExplanationDifferenceError
from lambdanets.explanation.decision import Ablation
from lambdanets.explanation.distances import Learnt, learnt
from lambdanets.explanation.explanation import Explanation, explain

__all__ = ["Ablation", "Check", "Explanation", "ExplanationDifferenceError", "Learnt", "explain", "learnt"]
