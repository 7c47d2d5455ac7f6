"""The real thing, small: ``dvc repro`` from the generated archive to submission.csv.

One run in a copy of the project serves all tests of this file; nothing is faked.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from src import paths

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(600)]

SMALL = {
    "sample": {"n_train": 160, "n_test": 20, "n_train_slides": 10, "n_test_slides": 2},
    "explore": {"patches_per_class": 4},
    "model": {"input_size": 32},
    "train": {"epochs": 2, "views": 1},
    "finetune": {"epochs": 2, "depth": 1, "views": 2},
}
PYTHON_BIN = Path(sys.executable).parent


def _run(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    hidden = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = f"{PYTHON_BIN}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pipeline") / "project"
    root.mkdir()
    copied = ("src", "presets", "data/extra/README.md", "mlruns/.gitkeep", "dvc.yaml")
    for name in (*copied, ".dvc/config", ".gitignore"):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = paths.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(paths.ROOT / "presets" / "sample.yaml")
    for section, values in SMALL.items():
        params[section].update(values)
    yaml.dump(params, root / "params.yaml")
    _run(root, "git", "init", "-q")
    _run(root, "git", "add", "-A")
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    _run(root, "git", *author, "commit", "-qm", "project")
    _run(root, "dvc", "repro")
    return root


def _json(project: Path, name: str) -> dict:
    return json.loads((project / name).read_text())


def _store(project: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def test_the_submission_has_the_rows_of_sample_submission_in_its_order(project):
    """Catches rows lost, doubled or in directory order."""
    import zipfile

    with zipfile.ZipFile(project / "data" / "source" / "sample.zip") as archive:
        wanted = pd.read_csv(archive.open("sample_submission.csv"))
    submission = pd.read_csv(project / "submission" / "submission.csv")
    assert submission["id"].tolist() == wanted["id"].tolist()
    assert submission.columns.tolist() == ["id", "label"]
    assert submission["label"].between(0, 1).all()


def test_nothing_runs_twice(project):
    """Catches a stage that DVC can't recognise as up to date, and duplicate MLflow runs."""
    client = _store(project)
    experiments = [e.experiment_id for e in client.search_experiments()]
    before = len(client.search_runs(experiments))
    again = _run(project, "dvc", "repro")
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout
    assert len(client.search_runs(experiments)) == before == 3


def test_metrics_json_is_what_the_run_holds(project):
    """Catches two sources of one number."""
    from src.tracking.records import flat_metrics

    run_id = _json(project, "models/finetuned/run.json")["run_id"]
    logged = _store(project).get_run(run_id).data.metrics
    for name, value in flat_metrics(_json(project, "reports/metrics.json")).items():
        assert logged[name] == pytest.approx(value), name


def test_report_run_and_gate_say_the_same_of_the_baseline(project):
    """Catches a look taken twice, by evaluate and by register, and groups that only one counts."""
    text = _json(project, "reports/metrics.json")["against_baseline"]["text"]
    run_id = _json(project, "models/finetuned/run.json")["run_id"]
    assert _store(project).get_run(run_id).data.tags["against_baseline"] == text
    rules = {row["rule"]: row for row in _json(project, "reports/registration.json")["rules"]}
    reason = rules["beats_baseline"]["reason"]
    # with too few groups for an interval, the text says what could not be compared, then why
    assert text.endswith(reason.removesuffix("; model 1 judged on this archive"))


def test_report_says_the_metrics_and_lies_in_the_run(project):
    """Catches a page of an earlier evaluation, and one that a reader of the run can't open."""
    metrics = _json(project, "reports/metrics.json")
    page = (project / "reports" / "index.html").read_text(encoding="utf-8")
    card = (project / "reports" / "model_card.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert f"{metrics['holdout']['auroc']:.3f}" in text
    assert len(page.encode()) < 8e6
    run_id = _json(project, "models/finetuned/run.json")["run_id"]
    logged = {artifact.path for artifact in _store(project).list_artifacts(run_id, "report")}
    assert logged == {"report/index.html", "report/model_card.md"}


@pytest.mark.parametrize("stage", ["head", "finetuned"])
def test_every_run_carries_curves_class_weights_schedule_and_weights(project, stage):
    """Catches a run that can't be compared with others, or whose model is missing."""
    client = _store(project)
    fit = _json(project, f"models/{stage}/fit.json")
    run = client.get_run(_json(project, f"models/{stage}/run.json")["run_id"])
    assert run.info.status == "FINISHED"
    for name in ("loss", "val_loss", "val_auroc", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [m.step for m in history] == [row["epoch"] for row in fit["history"]]
        assert [m.value for m in history] == pytest.approx([row[name] for row in fit["history"]])
    assert float(run.data.params["class_weight.tumour"]) == fit["class_weights"]["tumour"]
    assert run.data.params["lr_schedule.name"] == fit["schedule"]["name"]
    assert run.data.tags["final_weights_sha256"] == fit["final_weights_sha256"]
    assert run.inputs.dataset_inputs
    assert run.outputs.model_outputs
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert "class_weights.json" in artifacts


def test_head_training_changes_the_head_only(project):
    """Catches a backbone or BatchNorm statistics that move although they are frozen."""
    head, tuned = (_weights(project / "models" / name) for name in ("head", "finetuned"))
    moved = {name.split("/")[0] for name in head if not np.array_equal(head[name], tuned[name])}
    assert "logit" in moved
    assert moved - {"logit"} <= {name for name in moved if name.startswith("conv5_block3_")}
    assert any(name.startswith("conv5_block3_") for name in moved)


def _weights(folder: Path) -> dict[str, np.ndarray]:
    from src.model.inference import load_classifier

    return {weight.path: weight.numpy() for weight in load_classifier(folder).weights}


def test_what_is_registered_scores_as_evaluate_did(project):
    """Catches train/serve skew: registry copy against predictions.parquet, patch by patch."""
    from src.model.inference import load_classifier

    predictions = pd.read_parquet(project / "reports" / "evaluate" / "predictions.parquet")
    patches = pd.read_parquet(project / "data" / "ingest" / "patches.parquet")
    joined = predictions.merge(patches[["id", "row"]], on="id")
    pixels = np.load(project / "data" / "ingest" / "train.npy", mmap_mode="r")
    model = load_classifier(project / "models" / "final")
    got = model.predict(pixels[joined["row"].to_numpy()], verbose=0)[:, 0]
    np.testing.assert_allclose(got, joined["probability"], atol=1e-5)


def test_registration_names_the_version_that_predicted(project):
    """Catches a submission that can't be traced to a version."""
    registration = _json(project, "reports/registration.json")
    lineage = _json(project, "submission/lineage.json")
    assert lineage["model"]["version"] == registration["predict_with"]["version"] == 1
    assert lineage["model"]["role"] == registration["predict_with"]["role"]
    challenger = _store(project).get_model_version_by_alias(
        "histopathologic-cancer-detection", "challenger"
    )
    assert int(challenger.version) == 1


def test_a_deleted_registry_is_one_line_and_its_remedy_works(project):
    """Catches a traceback, or a remedy that fails, after mlflow.db and mlruns/ are gone."""
    shutil.rmtree(project / "mlruns")
    (project / "mlflow.db").unlink()
    refused = _run(project, "python", "-m", "src.predict", check=False)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    command = refused.stderr.split("run: ")[1].strip().split()
    _run(project, *command)
    assert (project / "submission" / "submission.csv").is_file()
    assert "up to date" in _run(project, "dvc", "status").stdout
