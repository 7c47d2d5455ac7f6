"""Every path and URI of the project, each written once.

Data and reports live in the workspace that runs (``ROOT``). Tracking lives in the repository that
owns it (``TRACKING_ROOT``): ``dvc exp run --temp`` copies the workspace but exports ``DVC_ROOT``,
the parent repository, so that all runs end up in one MLflow database.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PARAMS = ROOT / "params.yaml"
CACHE = ROOT / ".cache"
CHECKPOINTS = CACHE / "checkpoints"
ACTIVATIONS = CACHE / "activations"

SAMPLE_ARCHIVE = ROOT / "data" / "source" / "sample.zip"

INGEST = ROOT / "data" / "ingest"
PATCHES = INGEST / "patches.parquet"
INGEST_REPORT = INGEST / "report.json"

EXPLORE = ROOT / "reports" / "explore"

SPLIT_DIR = ROOT / "data" / "split"
SPLIT = SPLIT_DIR / "split.parquet"
SPLIT_REPORT = SPLIT_DIR / "split.json"

HEAD_MODEL = ROOT / "models" / "head"
FINETUNED_MODEL = ROOT / "models" / "finetuned"
FINAL_MODEL = ROOT / "models" / "final"

EVALUATE = ROOT / "reports" / "evaluate"
PREDICTIONS = EVALUATE / "predictions.parquet"
METRICS = ROOT / "reports" / "metrics.json"
PLOTS = ROOT / "reports" / "plots"
GALLERY = ROOT / "reports" / "gallery"
REPORT = ROOT / "reports" / "index.html"
MODEL_CARD = ROOT / "reports" / "model_card.md"

REGISTRATION = ROOT / "reports" / "registration.json"

SUBMISSION_DIR = ROOT / "submission"
SUBMISSION = SUBMISSION_DIR / "submission.csv"
LINEAGE = SUBMISSION_DIR / "lineage.json"

TUNE_REPORT = ROOT / "reports" / "tune"
TUNE_LOGS = CACHE / "tune" / "logs"

TRACKING_ROOT = Path(os.environ.get("DVC_ROOT") or ROOT).resolve()
MLFLOW_DB = TRACKING_ROOT / "mlflow.db"
TUNE_DB = TRACKING_ROOT / "tune.db"
MLFLOW_ARTIFACTS = TRACKING_ROOT / "mlruns"
PROMOTIONS = MLFLOW_ARTIFACTS / "promotions"
TRACKING_LOCK = TRACKING_ROOT / ".cache" / "mlflow.lock"
