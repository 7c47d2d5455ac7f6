"""``predict --input``: any patches, the champion only, a whole table or none."""

import csv
import dataclasses
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src import predict, prediction, scoring
from src.data.sources import open_input
from src.model.final import CONTRACT, ContractError, check_contract
from src.params import load_params
from src.tracking import registry, runs
from src.tracking.logged_models import VerificationError
from tests.tracking.support import final_folder, patches, record

pytest_plugins = ("tests.tracking.fixtures",)

LOG = logging.getLogger("hcd.test")
PIXELS = patches(5)


class BrightnessScorer(scoring.Scorer):
    """Half the first byte of a patch in hundredths; keeps the sizes of its batches."""

    def __init__(self):
        self.threshold = 0.5
        self.sizes = []

    def probabilities(self, pixels):
        self.sizes.append(len(pixels))
        return pixels[:, 0, 0, 0] / 200


def folder_of(tmp_path, first_bytes):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, value in enumerate(first_bytes):
        pixels = np.full((96, 96, 3), value, np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i}.tif")
    return folder


def written(source, output, **changes):
    options = {"batch_size": 2, "skip_bad": False, "log": LOG} | changes
    scorer = options.pop("scorer", None) or BrightnessScorer()
    n_bad = prediction.write_predictions(source, scorer, output, **options)
    return n_bad, list(csv.reader(output.read_text().splitlines()))


def test_rows_are_id_probability_and_decision_at_the_threshold(tmp_path):
    """Both sides of the threshold, and on it: tumour."""
    source = open_input(folder_of(tmp_path, [99, 100, 101]))
    n_bad, rows = written(source, tmp_path / "out.csv")
    assert n_bad == 0
    assert rows == [
        ["id", "probability", "decision"],
        ["p0", "0.495", "normal"],
        ["p1", "0.5", "tumour"],
        ["p2", "0.505", "tumour"],
    ]


def test_no_more_than_a_batch_is_scored_at_once(tmp_path):
    """Catches all pixels read into memory first."""
    scorer = BrightnessScorer()
    written(open_input(folder_of(tmp_path, range(5))), tmp_path / "out.csv", scorer=scorer)
    assert scorer.sizes == [2, 2, 1]


def test_bad_files_are_all_named_and_nothing_is_written(tmp_path, caplog):
    """Catches a table that lacks rows, and a person who learns of one bad file a run."""
    folder = folder_of(tmp_path, range(5))
    for name in ("p1.tif", "p4.tif"):
        (folder / name).write_bytes(b"")
    (tmp_path / "out.csv").write_text("earlier")
    with pytest.raises(prediction.PredictionError, match="2 of 5 patches are unreadable"):
        written(open_input(folder), tmp_path / "out.csv")
    assert [r.getMessage() for r in caplog.records] == [
        f"unreadable patch {folder / name}: empty image file" for name in ("p1.tif", "p4.tif")
    ]
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out.csv"]


def test_skipped_bad_files_have_empty_values_at_their_place(tmp_path):
    folder = folder_of(tmp_path, [0, 0, 200])
    (folder / "p1.tif").write_bytes(b"")
    n_bad, rows = written(open_input(folder), tmp_path / "out.csv", skip_bad=True)
    assert n_bad == 1
    assert rows[1:] == [["p0", "0", "normal"], ["p1", "", ""], ["p2", "1", "tumour"]]


@pytest.mark.parametrize("options", [{"input_": "x"}, {"output": "y"}, {"skip_bad": True}])
def test_half_of_the_options_is_refused(options):
    """Catches the stage run, and its submission replaced, in place of what was asked for."""
    with pytest.raises(prediction.PredictionError, match="--input and --output go together"):
        predict.main(**options)


@pytest.fixture
def version(store, tmp_path, keras_file, model_name):  # noqa: ARG001
    with runs.training_run(record()) as run:
        pass
    evidence = {"auroc": 0.9, "baseline_auroc": 0.8}
    final = final_folder(tmp_path / "final", keras_file)
    number = registry.register_version(final, name=model_name, run_id=run.run_id, evidence=evidence)
    return registry.load_version(model_name, number)


@pytest.fixture
def params(model_name):
    loaded = load_params()
    named = loaded.register_.model_copy(update={"name": model_name})
    return loaded.model_copy(update={"register_": named})


@pytest.mark.tensorflow
def test_command_answers_as_the_model_does(version, params, tmp_path, keras_file):
    import keras

    np.save(tmp_path / "p.npy", PIXELS)
    registry.set_alias(version.name, registry.CHAMPION, version.version)
    output = tmp_path / "new" / "out.csv"
    prediction.predict_input(tmp_path / "p.npy", output, params, skip_bad=False, log=LOG)
    rows = list(csv.DictReader(output.read_text().splitlines()))
    expected = keras.saving.load_model(keras_file).predict(PIXELS, verbose=0)[:, 0]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected, atol=1e-6)
    decisions = ["tumour" if p >= 0.4 else "normal" for p in expected]
    assert [row["decision"] for row in rows] == decisions


@pytest.mark.tensorflow
def test_challenger_is_not_used(version, params, tmp_path):
    """Catches the newest version taken where no champion stands."""
    np.save(tmp_path / "p.npy", PIXELS)
    with pytest.raises(prediction.PredictionError, match=f"no champion of {version.name} stands"):
        prediction.predict_input(
            tmp_path / "p.npy", tmp_path / "o", params, skip_bad=False, log=LOG
        )


@pytest.mark.tensorflow
def test_tampered_champion_is_not_used(version, params, monkeypatch):
    registry.set_alias(version.name, registry.CHAMPION, version.version)
    (version.folder / "evidence/operating_point.json").write_text('{"threshold": 0.0}')
    monkeypatch.setattr(registry, "load_keras", lambda path: pytest.fail(f"loaded {path}"))
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        prediction.load_champion(version.name, params, LOG)


def model_of(shape=(96, 96, 3), dtype="uint8", outputs=1, output_dtype="float32"):
    tensor = SimpleNamespace(shape=(None, *shape), dtype=dtype)
    return SimpleNamespace(
        input=tensor, output=SimpleNamespace(shape=(None, outputs), dtype=output_dtype)
    )


@pytest.mark.parametrize("recorded", [CONTRACT, None])
def test_contract_of_this_code_is_accepted(recorded):
    """Versions from before contracts were recorded are of format 1."""
    check_contract(recorded, model_of())


@pytest.mark.parametrize(
    ("recorded", "model", "reason"),
    [
        ({**CONTRACT, "format": 2}, model_of(), "format is 2, this code works with 1"),
        ({**CONTRACT, "stain": "normalised"}, model_of(), "stain is normalised"),
        ({**CONTRACT, "preprocessing": "outside"}, model_of(), "preprocessing is outside"),
        (CONTRACT, model_of(dtype="float32"), "input is .*float32"),
        (CONTRACT, model_of(shape=(64, 64, 3)), r"input is .*\[64, 64, 3\]"),
        (CONTRACT, model_of(outputs=2), r"output is .*\[2\]"),
        (None, model_of(outputs=2), r"output is .*\[2\]"),
    ],
)
def test_other_contract_is_refused(recorded, model, reason):
    """Catches a model fed with what it wasn't made for: it answers, and wrongly."""
    with pytest.raises(ContractError, match=reason):
        check_contract(recorded, model)


@pytest.mark.tensorflow
def test_version_of_another_contract_scores_nothing(version):
    """Catches the check left out where patches are scored: here, and in the server."""
    other = dataclasses.replace(version, contract={**CONTRACT, "format": 2})
    with pytest.raises(ContractError, match="format is 2"):
        scoring.Scorer(other)


@pytest.mark.tensorflow
def test_stage_refuses_another_contract_too(version, monkeypatch):
    other = dataclasses.replace(version, contract={**CONTRACT, "format": 2})
    monkeypatch.setattr(registry, "load_version", lambda *_: other)
    chosen = {"name": version.name, "predict_with": {"version": 1, "role": "champion"}}
    with pytest.raises(ContractError, match="format is 2"):
        predict.load_chosen(chosen, unpromoted="allow", log=LOG)


@pytest.mark.tensorflow
def test_contract_travels_with_the_version(version):
    assert version.contract == CONTRACT


@pytest.mark.tensorflow
@pytest.mark.parametrize("tta", [False, True])
def test_what_evaluate_writes_is_what_predict_accepts(tta, tmp_path):
    """Catches models/final without its contract, and a contract that its own model breaks."""
    from src.evaluation.operating_point import OperatingPoint
    from src.model.classifier import build_classifier
    from src.model.final import write_final
    from src.model.inference import load_classifier

    params = load_params().model.model_copy(update={"backbone": "resnet_tiny", "input_size": 32})
    seen = {"ids": ["a" * 40], "sha256": ["b" * 64], "slides": []}
    point = OperatingPoint({"min_sensitivity": 0.95}, threshold=0.5, scale=1.0, shift=0.0, tta=tta)
    write_final(tmp_path / "final", build_classifier(params), dataclasses.asdict(point), seen)
    recorded = json.loads((tmp_path / "final" / "contract.json").read_text())
    assert recorded == CONTRACT
    check_contract(recorded, load_classifier(tmp_path / "final"))
