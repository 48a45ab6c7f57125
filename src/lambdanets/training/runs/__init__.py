"""Run folders as storage: their files, the split, the lock, the model that a run holds, the list of runs."""
