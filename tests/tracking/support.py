"""Plain values and tiny model folders for the tests of tracking, register and predict."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from src import paths
from src.model.final import CONTRACT, CONTRACT_FILE
from src.system.durable import replacing_folder, write_json
from src.tracking.records import RunRecord

# of a version that was trained on the archive of ``tests.fixtures``
EVIDENCE = {
    "auroc": 0.9,
    "baseline_auroc": 0.5,
    "final_weights_sha256": "b" * 64,
    "data": {"train": "f" * 64},
}


def point_paths_at(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setattr(paths, "TRACKING_ROOT", root)
    patch.setattr(paths, "MLFLOW_DB", root / "mlflow.db")
    patch.setattr(paths, "MLFLOW_ARTIFACTS", root / "mlruns")
    patch.setattr(paths, "PROMOTIONS", root / "mlruns" / "promotions")
    patch.setattr(paths, "TRACKING_LOCK", root / ".cache" / "mlflow.lock")
    patch.setattr(paths, "CACHE", root / ".cache")


def record(stage: str = "finetune", **changes) -> RunRecord:
    values = {
        "stage": stage,
        "params": {
            "finetune": {"depth": 3, "learning_rate": 3e-4, "schedule": {"name": "plateau"}},
            "train": {"learning_rate": 3e-3},
            "model": {"centre_crop": None, "dropout": 0.2},
        },
        "dataset": {
            "name": "sample",
            "digest": "0123456789abcdef0123456789abcdef.dir",
            "source": "data/split",
            "n_train": 100,
            "n_val": 20,
        },
        "class_weights": {"normal": 0.8, "tumour": 1.25},
        "schedule": {"name": "plateau", "factor": 0.5},
        "initial_weights_sha256": "a" * 64,
        "slide_disjoint": True,
        "origin": {"git_commit": "c0ffee", "git_dirty": "false", "dvc_stage": "", "dvc_exp": "e1"},
    }
    return RunRecord(**{**values, **changes})


def fit(n_epochs: int = 2) -> dict:
    rates = [3e-4, 1.5e-4, 7.5e-5][:n_epochs]
    history = [
        {
            "epoch": epoch,
            "loss": 0.7 / epoch,
            "val_loss": 0.8 / epoch,
            "val_auroc": 0.6 + 0.1 * epoch,
            "learning_rate": rate,
        }
        for epoch, rate in enumerate(rates, start=1)
    ]
    return {
        "stage": "finetune",
        "history": history,
        "class_weights": {"normal": 0.8, "tumour": 1.25},
        "schedule": {"name": "plateau", "factor": 0.5},
        "best_epoch": n_epochs,
        "stopped_early": False,
        "n_train": 100,
        "n_val": 20,
        "initial_weights_sha256": "a" * 64,
        "final_weights_sha256": "b" * 64,
        "trainable_parameters": 4,
        "total_parameters": 4,
        "environment": {"threads": 2, "tensorflow": "2.21.0"},
    }


def timing(n_epochs: int = 2) -> dict:
    return {"epoch_s": [1.0] * n_epochs, "wall_s": float(n_epochs)}


def model_folder(folder: Path, keras_file: Path, run_id: str, run_record: RunRecord) -> Path:
    with replacing_folder(folder) as temporary:
        (temporary / "model.keras").write_bytes(keras_file.read_bytes())
        write_json(temporary / "fit.json", fit())
        write_json(temporary / "timing.json", timing())
        write_json(temporary / "run.json", {"run_id": run_id, "record": run_record.to_json()})
    return folder


def final_folder(
    folder: Path,
    keras_file: Path,
    seen_ids: Sequence[str] = ("a" * 40,),
    seen_sha256: Sequence[str] = (),
    seen_slides: Sequence[str] = (),
) -> Path:
    with replacing_folder(folder) as temporary:
        (temporary / "model.keras").write_bytes(keras_file.read_bytes())
        operating_point = {
            "rule": {"min_sensitivity": 0.95},
            "threshold": 0.4,
            "scale": 0.7,
            "shift": -0.3,
            "tta": False,
        }
        write_json(temporary / "operating_point.json", operating_point)
        write_json(temporary / CONTRACT_FILE, CONTRACT)
        seen_patches = {"ids": seen_ids, "sha256": seen_sha256, "slides": seen_slides}
        for name, seen in seen_patches.items():
            (temporary / f"seen_{name}.txt").write_text("".join(f"{i}\n" for i in seen))
    return folder


def patches(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
