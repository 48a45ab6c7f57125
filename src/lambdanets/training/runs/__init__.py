"""Run folders: reading, evaluating, predicting, exporting."""
