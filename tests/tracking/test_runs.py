"""Runs: what they carry, how they end, and what survives a store that goes away."""

import os
import signal
import subprocess
import sys

import pytest

from src import paths
from src.tracking import lifecycle, runs
from src.tracking.records import flat_metrics, run_name, run_params
from src.tracking.store import EXPERIMENT, TrackingError
from tests.tracking.support import fit, model_folder, record, timing

pytest_plugins = ("tests.tracking.fixtures",)

HISTORY = fit()["history"]


def metrics_by_step(store, run_id, name):
    history = store.client.get_metric_history(run_id, name)
    return [(metric.step, metric.value) for metric in history]


def test_name_tells_depth_and_rate_apart():
    assert run_name(record()) == "finetune d3 lr3e-4"
    assert run_name(record("train")) == "train lr3e-3"
    odd = record(params={"finetune": {"depth": 0, "learning_rate": 2.5e-5}})
    assert run_name(odd) == "finetune d0 lr2.5e-5"


def test_params_are_dotted_and_hold_weights_and_schedule():
    params = run_params(record())
    assert params["finetune.depth"] == "3"
    assert params["finetune.schedule.name"] == "plateau"
    assert params["model.centre_crop"] == "None"
    assert (params["class_weight.normal"], params["class_weight.tumour"]) == ("0.8", "1.25")
    assert params["lr_schedule.factor"] == "0.5"


def test_flat_metrics_keep_numbers_only():
    nested = {"holdout": {"auroc": 0.9, "slide_disjoint": True, "note": "x", "n": 7}}
    assert flat_metrics(nested) == {"holdout.auroc": 0.9, "holdout.n": 7.0}


@pytest.mark.tensorflow
def test_run_carries_all_a_person_compares(store, keras_file):
    with runs.training_run(record(parent_run_id="f" * 32)) as run:
        for row in HISTORY:
            run.log_epoch(row["epoch"], row)
        run.log_result(fit(), timing(), keras_file, {})
    logged = store.client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert metrics_by_step(store, run.run_id, "learning_rate") == [(1, 3e-4), (2, 1.5e-4)]
    assert logged.data.metrics["best_val_auroc"] == pytest.approx(0.8)
    assert "epoch" not in logged.data.metrics
    tags = logged.data.tags
    assert tags["stage"] == "finetune"
    assert tags["head_run_id"] == "f" * 32
    assert (tags["git_commit"], tags["git_dirty"], tags["dvc_exp"]) == ("c0ffee", "false", "e1")
    assert (tags["initial_weights_sha256"], tags["final_weights_sha256"]) == ("a" * 64, "b" * 64)
    assert (tags["slide_disjoint"], tags["env.threads"]) == ("true", "2")
    files = {file.path for file in store.client.list_artifacts(run.run_id)}
    assert files == {"class_weights.json", "env.json", "fit.json", "pictures"}
    pictures = [file.path for file in store.client.list_artifacts(run.run_id, "pictures")]
    assert pictures == ["pictures/lr_schedule.png"]
    dataset = logged.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("sample", record().dataset["digest"])


@pytest.mark.tensorflow
def test_logged_model_takes_uint8_and_is_pinned(store, keras_file):
    """A float32 signature would refuse the very patches the model is made for."""
    import mlflow.keras
    import mlflow.models

    with runs.training_run(record()) as run:
        run.log_result(fit(), timing(), keras_file, {})
    model_id = store.client.get_run(run.run_id).outputs.model_outputs[0].model_id
    model = store.client.get_logged_model(model_id)
    assert (model.name, model.status) == ("resnet50", "READY")
    folder = paths.MLFLOW_ARTIFACTS / EXPERIMENT / "models" / model_id / "artifacts"
    signature = mlflow.models.Model.load(str(folder)).signature
    (patches,), (output,) = signature.inputs.inputs, signature.outputs.inputs
    assert (str(patches.type), patches.shape) == ("uint8", (-1, 96, 96, 3))
    assert (str(output.type), output.shape) == ("float32", (-1, 1))
    requirements = (folder / "requirements.txt").read_text().split()
    pinned = {line.split("==")[0] for line in requirements}
    assert pinned == {"tensorflow", "keras", "mlflow", "numpy"}
    assert mlflow.keras.load_model(str(folder)).output_shape == (None, 1)


def test_error_ends_as_failed_and_ctrl_c_as_killed(store):
    with pytest.raises(ZeroDivisionError), runs.training_run(record()) as failed:
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), runs.training_run(record()) as killed:
        raise KeyboardInterrupt
    assert store.client.get_run(failed.run_id).info.status == "FAILED"
    assert store.client.get_run(killed.run_id).info.status == "KILLED"


def test_sigterm_ends_as_killed_and_hands_the_signal_back(store):
    with pytest.raises(SystemExit) as caught, runs.training_run(record()) as run:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert store.client.get_run(run.run_id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


HANG = """
import sys, time
from src.tracking import runs
from tests.tracking.support import fit, record
with runs.training_run(record("train")) as run:
    run.log_epoch(1, fit()["history"][0])
    print(run.run_id, flush=True)
    time.sleep(600)
"""


def test_run_of_a_process_killed_hard_is_ended_by_the_next(store, store_root):
    """kill -9 leaves RUNNING for ever; a live process' run and another stage's stay."""
    environment = {**os.environ, "DVC_ROOT": str(store_root)}
    with subprocess.Popen(
        [sys.executable, "-c", HANG],
        cwd=paths.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        run_id = process.stdout.readline().strip()
        assert lifecycle.close_orphans(store, "train") == []
        process.kill()
    assert lifecycle.close_orphans(store, "finetune") == []
    with runs.training_run(record("train")):
        closed = store.client.get_run(run_id).info
    assert closed.status == "KILLED"
    last_epoch = store.client.get_metric_history(run_id, "loss")[-1].timestamp
    assert closed.end_time == last_epoch


class Outage:
    """``log_batch`` of the real client, failing while ``is_down``."""

    def __init__(self, client, patch):
        from mlflow.exceptions import MlflowException

        self.is_down = True
        self.n_calls = 0
        answer = client.log_batch

        def log_batch(*args, **kwargs):
            self.n_calls += 1
            if self.is_down:
                raise MlflowException("connection refused")
            return answer(*args, **kwargs)

        patch.setattr(client, "log_batch", log_batch)


@pytest.mark.tensorflow
def test_outage_costs_a_warning_and_no_metric(store, keras_file, monkeypatch, caplog):
    monkeypatch.setattr(runs.get_logger("tracking").parent, "propagate", True)
    with runs.training_run(record()) as run:
        outage = Outage(run._store.client, monkeypatch)
        for row in fit(3)["history"]:
            run.log_epoch(row["epoch"], row)
        assert outage.n_calls == 1  # a dead server isn't asked again every epoch
        # by identity: where pytest captures at two loggers, one record is listed twice
        warned = {id(r): r.levelname for r in caplog.records if r.name == "hcd.tracking"}
        assert list(warned.values()) == ["WARNING"]
        outage.is_down = False
        run.log_result(fit(3), timing(3), keras_file, {})
    losses = metrics_by_step(store, run.run_id, "loss")
    assert losses == [(1, 0.7), (2, 0.35), (3, pytest.approx(0.7 / 3))]


def test_result_that_is_not_taken_is_told(store, keras_file, monkeypatch):  # noqa: ARG001
    refused = r"did not take the result of run .*connection refused"
    with runs.training_run(record()) as run:
        outage = Outage(run._store.client, monkeypatch)
        with pytest.raises(TrackingError, match=refused):
            run.log_result(fit(), timing(), keras_file, {})
        outage.is_down = False


@pytest.mark.tensorflow
def test_present_run_is_kept_and_lost_one_restored_once(store, keras_file, tmp_path):
    """Each later stage asks again: the restored run must be found, not restored anew."""
    with runs.training_run(record("train")) as present:
        pass
    head = model_folder(tmp_path / "head", keras_file, present.run_id, record("train"))
    assert runs.ensure_run(head) == present.run_id

    lost = model_folder(tmp_path / "finetuned", keras_file, "0" * 32, record())
    restored = runs.ensure_run(lost)
    assert runs.ensure_run(lost) == restored
    run = store.client.get_run(restored)
    assert run.info.status == "FINISHED"
    assert run.data.tags["restored"] == "true"
    assert run.data.tags["git_commit"] == "c0ffee"  # of the training, not of the restoration
    assert metrics_by_step(store, restored, "loss") == [(1, 0.7), (2, 0.35)]


@pytest.mark.tensorflow
def test_lost_head_is_restored_with_its_finetuning(store, keras_file, tmp_path):
    """Otherwise head_run_id points to a run that nobody finds."""
    head = model_folder(tmp_path / "head", keras_file, "1" * 32, record("train"))
    child = record(parent_run_id="1" * 32)
    finetuned = model_folder(tmp_path / "finetuned", keras_file, "2" * 32, child)
    tags = store.client.get_run(runs.ensure_run(finetuned)).data.tags
    assert tags["head_run_id"] == runs.ensure_run(head)


@pytest.mark.tensorflow
def test_deleted_run_counts_as_lost(store, keras_file, tmp_path):
    with runs.training_run(record()) as run:
        pass
    store.client.delete_run(run.run_id)
    assert runs.find_run(run.run_id).info.lifecycle_stage == "deleted"
    lost = model_folder(tmp_path / "finetuned", keras_file, run.run_id, record())
    assert runs.ensure_run(lost) != run.run_id


@pytest.mark.tensorflow
def test_evaluation_is_added_under_dotted_names_and_kept_current(store, keras_file, tmp_path):
    with runs.training_run(record()) as run:
        pass
    folder = model_folder(tmp_path / "finetuned", keras_file, run.run_id, record())
    runs.add_evaluation(run.run_id, {"holdout": {"auroc": 0.91}}, {}, {"verdict": "beats it"})
    logged = store.client.get_run(run.run_id).data
    assert logged.metrics["holdout.auroc"] == 0.91
    assert logged.tags["verdict"] == "beats it"
    # catches a run that keeps another evaluation's numbers under the same names
    assert runs.run_with_metrics(folder, {"holdout": {"auroc": 0.92}}) == run.run_id
    assert store.client.get_run(run.run_id).data.metrics["holdout.auroc"] == 0.92


def test_files_are_artifacts_of_the_run(store, tmp_path):
    """A report that can't be opened from the run it describes; an unknown run is one line."""
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.set_terminated(run_id)
    page = tmp_path / "index.html"
    page.write_text("<p>report</p>")
    runs.add_files(run_id, [page], "report")
    assert [a.path for a in store.client.list_artifacts(run_id, "report")] == ["report/index.html"]
    with pytest.raises(TrackingError, match="did not take files of run"):
        runs.add_files("f" * 32, [page], "report")


def test_exploration_is_one_run_with_numbers_pictures_and_which_data(store, tmp_path):
    data = {"content_digest": "abc", "groups_are": "slides", "slide_disjoint": "true"}
    report = {"n_train": 12, "channels": {"train": {"mean": [0.7]}}, "duplicates": {"n_sets": 1}}
    for name in ("explore.json", "labels.png"):
        (tmp_path / name).write_text("{}")
    logged = store.client.get_run(runs.log_exploration(data, report, tmp_path))
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"n_train": 12, "duplicates.n_sets": 1}
    assert logged.data.tags.items() >= (data | {"stage": "explore"}).items()
    files = {f.path for f in store.client.list_artifacts(logged.info.run_id, "explore")}
    assert files == {"explore/explore.json", "explore/labels.png"}


def test_work_gone_on_with_says_which_code_did(store):
    """Catches run.json and MLflow that disagree after a commit which changed nothing here."""
    with runs.training_run(record(work_key="k" * 64)) as first:
        pass
    later = record(work_key="k" * 64, origin={**record().origin, "git_commit": "f00d"})
    with runs.training_run(later) as second:
        pass
    assert second.run_id == first.run_id
    tags = store.client.get_run(first.run_id).data.tags
    assert (tags["git_commit"], tags["mlflow.source.git.commit"]) == ("f00d", "f00d")
