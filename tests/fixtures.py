"""A project as ``evaluate`` leaves it, with a tiny model and a real store; a pytest plugin."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src import paths, promote, register
from src.model import scorer
from src.params import load_params
from src.system.durable import sha256_file, write_json
from src.tracking import runs
from src.tracking import store as tracking_store
from tests.evaluated import holdout, labelled_patches, write_evaluation
from tests.tracking.support import final_folder, model_folder, patches, record


@pytest.fixture
def project(store, tmp_path, keras_file, model_name, monkeypatch):  # noqa: ARG001
    return make_project(tmp_path, keras_file, model_name, monkeypatch)


def make_project(
    tmp_path: Path,
    keras_file: Path,
    model_name: str,
    monkeypatch: pytest.MonkeyPatch,
    dataset: dict | None = None,
    origin: dict | None = None,
) -> SimpleNamespace:
    """All that ``evaluate`` leaves behind, made with the tiny model; ``probability`` is its own.

    ``dataset`` and ``origin`` go into the records of its two runs, with the split that lies here.
    """
    import keras

    # models judged in another test are no looks at this one's archive
    monkeypatch.setattr(tracking_store, "EXPERIMENT", f"{tracking_store.EXPERIMENT} {model_name}")
    rows = holdout().assign(split="holdout")
    # a holdout of its own in the session's store, which counts looks
    rows["sha256"] = [hashlib.sha256(f"{model_name} {i}".encode()).hexdigest() for i in rows["id"]]
    # brightness decides the tiny model, so let it follow the label, but not everywhere: what is
    # the same in every group has no interval
    bright = 100 * rows["label"].to_numpy() + np.random.default_rng(6).integers(0, 120, 40)
    pixels = (patches(40) // 8 + bright[:, None, None, None]).astype(np.uint8)
    model = keras.saving.load_model(keras_file)
    rows["probability"] = np.asarray(model(pixels), np.float64)[:, 0]
    if rows.groupby("label")["probability"].mean().diff().iloc[-1] < 0:
        pixels = pixels[[i ^ 1 for i in range(40)]]
        rows["probability"] = np.asarray(model(pixels), np.float64)[:, 0]
    split = labelled_patches(rows["id"].tolist(), np.arange(40), pixels)
    for module in (register, scorer):
        monkeypatch.setattr(module, "load_split", lambda _: split)

    monkeypatch.setattr(paths, "EVALUATE", tmp_path / "evaluate")
    monkeypatch.setattr(paths, "PREDICTIONS", tmp_path / "evaluate" / "predictions.parquet")
    monkeypatch.setattr(paths, "METRICS", tmp_path / "metrics.json")
    monkeypatch.setattr(paths, "INGEST_REPORT", tmp_path / "report.json")
    monkeypatch.setattr(paths, "REGISTRATION", tmp_path / "registration.json")
    monkeypatch.setattr(paths, "FINETUNED_MODEL", tmp_path / "finetuned")
    monkeypatch.setattr(paths, "FINAL_MODEL", tmp_path / "final")
    monkeypatch.setattr(paths, "HEAD_MODEL", tmp_path / "head")
    monkeypatch.setattr(paths, "SPLIT", tmp_path / "split.parquet")
    paths.SPLIT.write_bytes(b"split")
    here = {"content_digest": "f" * 64, "split_sha256": sha256_file(paths.SPLIT)}
    dataset = {**record().dataset, **here, **(dataset or {})}
    write_evaluation(rows)
    write_json(paths.INGEST_REPORT, {"digests": {"train": "f" * 64}, "archive": {"name": "x.zip"}})
    final_folder(paths.FINAL_MODEL, keras_file)
    changes = {name: value for name, value in (("dataset", dataset), ("origin", origin)) if value}
    head = record("train", **changes)
    with runs.training_run(head) as head_run:
        pass
    model_folder(paths.HEAD_MODEL, keras_file, head_run.run_id, head)
    tuned = record(parent_run_id=head_run.run_id, **changes)
    with runs.training_run(tuned) as run:
        pass
    model_folder(paths.FINETUNED_MODEL, keras_file, run.run_id, tuned)
    params = load_params()
    named = params.register_.model_copy(update={"name": model_name})
    params = params.model_copy(update={"register_": named})
    for command in (register, promote):
        monkeypatch.setattr(command, "load_params", lambda: params)
        monkeypatch.setattr(command, "configure", lambda _: None)
    return SimpleNamespace(
        name=model_name, run_id=run.run_id, rows=rows, pixels=pixels, params=params
    )
