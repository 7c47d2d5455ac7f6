"""What the server answers: as predict does, or status 400 and why.

One real server, ``mlflow models serve`` on a free port of this machine, for all requests.
"""

import base64
import contextlib
import csv
import importlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src import evaluate, paths, predict, serve
from src.evaluation.baseline import N_FEATURES
from src.model import scorer
from src.model.final import write_final
from src.model.inference import logits_by_view
from src.params import load_params
from src.system.durable import MANIFEST, write_manifest
from src.system.errors import VerificationError
from src.tracking import registry, runs
from src.tracking.promotions import set_alias
from src.tracking.registry import version_in
from src.tracking.store import tracking_uri
from tests.evaluated import labelled_patches
from tests.tracking.support import final_folder, patches, point_paths_at, record

pytest_plugins = ("tests.tracking.fixtures",)

LOG = logging.getLogger("hcd.test")
NAME = "served"
PIXELS = (patches(3) // np.array([1, 2, 4])[:, None, None, None]).astype(np.uint8)
START_S = 120


def coded(pixels: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


PNGS = [coded(patch, "PNG") for patch in PIXELS]
TIFFS = [coded(patch, "TIFF") for patch in PIXELS]


@pytest.fixture(scope="module")
def classifier():
    """uint8 (n, 96, 96, 3) → logit, another one for each view of a patch."""
    import keras

    keras.utils.set_random_seed(3)
    patch = keras.Input((96, 96, 3), dtype="uint8")
    squares = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 255)(patch))
    # random pixels differ little in their means: large weights tell them apart
    start = keras.initializers.RandomNormal(stddev=30, seed=3)
    logit = keras.layers.Dense(1, kernel_initializer=start)(keras.layers.Flatten()(squares))
    return keras.Model(patch, logit)


@pytest.fixture(scope="module")
def evaluated(classifier):
    """What ``evaluate`` says of PIXELS, 8 views each, and its operating point."""
    params = load_params()
    chosen = params.evaluate.model_copy(update={"tta": True})
    params = params.model_copy(update={"evaluate": chosen})
    split = labelled_patches(["a", "b", "c"], range(3), PIXELS)
    logits = logits_by_view(classifier, split, all_views=True, batch_size=64, log=LOG)
    means = logits.mean(axis=0)
    split = replace(split, labels=(means > np.median(means)).astype(np.uint8))
    rng = np.random.default_rng(0)
    predictions = evaluate.predictions_of(
        split,
        (replace(split, split="val"), split),
        logits=[logits, logits],
        histograms=[rng.random((3, N_FEATURES), dtype=np.float32)] * 3,
        seed=1,
    )
    point = evaluate.operating_point_on_val(predictions, chosen)
    holdout = predictions[predictions["split"] == "holdout"]
    assert holdout["probability"].max() - holdout["probability"].min() > 0.1
    assert np.ptp(logits, axis=0).min() > 0.1  # the views of a patch differ
    return holdout, point


@pytest.fixture(scope="module")
def champion(store_root, classifier, evaluated, tmp_path_factory):
    """Files and number of a champion in the session's store, written as ``evaluate`` does."""
    with pytest.MonkeyPatch.context() as patch:
        point_paths_at(store_root, patch)
        final = tmp_path_factory.mktemp("served") / "final"
        patch.setattr(paths, "FINAL_MODEL", final)
        seen = {"ids": ["1" * 40], "sha256": ["2" * 64], "slides": []}
        write_final(final, classifier, asdict(evaluated[1]), seen)
        with runs.training_run(record()) as run:
            pass
        evidence = {"auroc": 0.9, "baseline_auroc": 0.8}
        version = registry.register_version(final, name=NAME, run_id=run.run_id, evidence=evidence)
        set_alias(NAME, registry.CHAMPION, version.number)
        yield SimpleNamespace(version=version.number, folder=version.folder, uri=tracking_uri())


@pytest.fixture(scope="module")
def server(champion, tmp_path_factory):
    """Address of ``mlflow models serve``, which the README names, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    options = ["--env-manager", "local", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command + options,
            cwd=paths.ROOT,
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": champion.uri,
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            },
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(address, process, log):
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ping"):
            return
        time.sleep(0.2)
    pytest.fail(log.read_text())


def post(address, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{address}/invocations", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def predicted(champion, store_root, tmp_path_factory):  # noqa: ARG001
    """What ``predict --input`` writes of the same patches."""
    folder = tmp_path_factory.mktemp("predicted")
    np.save(folder / "p.npy", PIXELS)
    params = load_params()
    named = params.register_.model_copy(update={"name": NAME})
    params = params.model_copy(update={"register_": named})
    with pytest.MonkeyPatch.context() as patch:
        point_paths_at(store_root, patch)
        patch.setattr(predict, "load_params", lambda: params)
        patch.setattr(predict, "configure", lambda _: None)
        predict.main(input_=folder / "p.npy", output=folder / "out.csv")
    return list(csv.DictReader((folder / "out.csv").read_text().splitlines()))


@pytest.mark.tensorflow
def test_predicted_is_what_was_evaluated(predicted, evaluated):
    """Catches another mean over views, calibration or threshold in the model than in the figures.

    What is served is compared with this below.
    """
    holdout, point = evaluated
    found = [float(row["probability"]) for row in predicted]
    np.testing.assert_allclose(found, holdout["probability"], atol=1e-6)
    called = holdout["probability"] >= point.threshold
    assert [row["decision"] for row in predicted] == ["tumour" if c else "normal" for c in called]


REQUESTS = {
    "pixels": {"inputs": PIXELS.tolist()},
    "pixels by name": {"inputs": {"patch": PIXELS.tolist()}},
    "pixels as instances": {"instances": PIXELS.tolist()},
    "PNG list": {"inputs": PNGS},
    "TIFF records": {"dataframe_records": [{"image": text} for text in TIFFS]},
    "TIFF split": {"dataframe_split": {"columns": ["image"], "data": [[t] for t in TIFFS]}},
    "PNG by name": {"inputs": {"image": PNGS}},
    "PNG instances": {"instances": [{"image": text} for text in PNGS]},
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", REQUESTS)
def test_served_answers_are_those_of_predict(kind, server, predicted):
    """Catches other decoding, channels, calibration or threshold in the server."""
    status, answer = post(server, REQUESTS[kind])
    assert status == 200, answer
    rows = answer["predictions"]
    assert [row["decision"] for row in rows] == [row["decision"] for row in predicted]
    expected = [float(row["probability"]) for row in predicted]
    np.testing.assert_allclose([row["probability"] for row in rows], expected, atol=1e-6)


JPEG = base64.b64encode(b"\xff\xd8\xff and so on").decode()
BAD_REQUESTS = {
    "no JSON": (b"{", "valid JSON"),
    "no known key": ({"pixels": [1]}, "exactly one of the input fields"),
    "one patch without its list": (
        {"inputs": PIXELS[0].tolist()},
        "pixels are int64 of shape (96, 96, 3)",
    ),
    "ragged": ({"inputs": [[1, 2], [3]]}, "inhomogeneous"),
    "scaled pixels": ({"inputs": (PIXELS / 255).tolist()}, "pixels are float64 of shape (3, 96"),
    "out of range": ({"inputs": (PIXELS[:1].astype(int) - 1).tolist()}, "pixels from -1"),
    "nothing": ({"inputs": []}, "0 patches in one request"),
    "not base64": ({"inputs": ["!"]}, "base64"),
    "JPEG": ({"inputs": [PNGS[0], JPEG]}, "format JPEG"),
    "two columns": ({"dataframe_records": [{"a": PNGS[0], "b": 1}]}, "got columns a, b"),
    "mixed": ({"inputs": [PNGS[0], 3]}, "base64"),
    "cut": ({"inputs": [TIFFS[0][:4000]]}, "truncated or corrupt TIFF"),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_bad_requests_get_400_and_the_reason(kind, server):
    """Catches status 500, a stack trace, or the request sent back in place of a reason."""
    body, reason = BAD_REQUESTS[kind]
    status, answer = post(server, body)
    assert (status, reason in answer["message"]) == (400, True), answer
    assert len(answer["message"]) < 1000


@pytest.mark.tensorflow
def test_folder_that_no_registry_named_is_not_served(keras_file, tmp_path):
    """Catches a folder of models served without the SHA-256 that only the registry knows."""
    folder = final_folder(tmp_path / "final", keras_file)
    with pytest.raises(VerificationError, match="not reached through the registry"):
        version_in(folder)


@pytest.mark.tensorflow
@pytest.mark.parametrize("file", ["data/model.keras", "evidence/operating_point.json", "MLmodel"])
def test_changed_files_are_not_served(file, champion, store, tmp_path, monkeypatch):  # noqa: ARG001
    """Its own copy: a manifest made anew doesn't help, the registry holds its SHA-256."""
    copy = shutil.copytree(champion.folder, tmp_path / "copy")
    (copy / "registered_model_meta").write_text(
        f"model_name: {NAME}\nmodel_version: {champion.version}\n"
    )
    monkeypatch.setattr(scorer, "_load", lambda path: pytest.fail(f"loaded {path}"))
    (copy / file).write_bytes((copy / file).read_bytes() + b" ")
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        scorer.Scorer(version_in(copy))
    (copy / MANIFEST).unlink()
    write_manifest(copy)
    with pytest.raises(VerificationError, match="is not the one that was registered"):
        scorer.Scorer(version_in(copy))


@pytest.mark.tensorflow
def test_command_serves_what_it_verified(champion, store, monkeypatch):  # noqa: ARG001
    """By number: an alias that moves after the check would serve what wasn't looked at."""
    params = load_params()
    named = params.register_.model_copy(update={"name": NAME})
    monkeypatch.setattr(
        serve, "load_params", lambda: params.model_copy(update={"register_": named})
    )
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(os, "chdir", lambda folder: started.append(folder))
    serve.main(port=5001)
    folder, (program, command, environment) = started
    assert folder == paths.ROOT
    assert program == command[0] == sys.executable
    assert f"models:/{NAME}/{champion.version}" in command
    assert environment["MLFLOW_TRACKING_URI"] == champion.uri
    (champion.folder / "MLmodel.bak").write_text("x")
    with pytest.raises(VerificationError, match="not in its manifest"):
        serve.main(port=5001)
    (champion.folder / "MLmodel.bak").unlink()
    assert len(started) == 2


def test_versions_name_a_loader_that_is_there():
    """Catches a module renamed here while MLmodel goes on naming the old one."""
    assert importlib.import_module(registry.SERVING_LOADER) is serve
    assert callable(serve._load_pyfunc)


def test_too_many_patches_are_refused():
    with pytest.raises(serve.ServeError, match="1,025 patches in one request; expected 1 to 1,024"):
        serve.patches_of([""] * 1025)
