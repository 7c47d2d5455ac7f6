"""What happened: runs, registered versions, promotions. The only room that imports MLflow."""

from __future__ import annotations

import os

# read when MLflow is imported, and so set before any module of this room imports it
for _name, _value in {
    # privacy: neither belongs on hospital machines, and both can stall a run without network
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # stdout is for our own lines
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # by default a person waits for minutes before they hear of a dead server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}.items():
    os.environ.setdefault(_name, _value)
