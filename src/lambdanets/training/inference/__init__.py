"""Uses of a trained model: evaluation, prediction, export, publication."""
