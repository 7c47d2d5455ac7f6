"""The search behind ``python -m src.tune``: space, study, trials, workers, reports."""
