"""The search of ``python -m src.tune``, on Optuna's own means."""
