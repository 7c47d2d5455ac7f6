"""``predict --input``: any patches, the champion only, a whole table or none."""

import csv

import numpy as np
import pytest

from src import predict
from src.model import scorer as scoring
from src.model.final import CONTRACT, ContractError
from src.params import load_params
from src.system.errors import VerificationError
from src.tracking import registry, runs
from src.tracking.promotions import set_alias
from tests.tracking.support import final_folder, patches, record

pytest_plugins = ("tests.tracking.fixtures",)

PIXELS = patches(5)


@pytest.mark.parametrize("options", [{"input_": "x"}, {"output": "y"}, {"skip_bad": True}])
def test_half_of_the_options_is_refused(options):
    """Catches the stage run, and its submission replaced, in place of what was asked for."""
    with pytest.raises(predict.PredictionError, match="--input and --output go together"):
        predict.main(**options)


@pytest.fixture
def version(store, tmp_path, keras_file, model_name, monkeypatch):  # noqa: ARG001
    """Registered under the name that the command asks for."""
    with runs.training_run(record()) as run:
        pass
    loaded = load_params()
    named = loaded.register_.model_copy(update={"name": model_name})
    params = loaded.model_copy(update={"register_": named})
    monkeypatch.setattr(predict, "load_params", lambda: params)
    monkeypatch.setattr(predict, "configure", lambda _: None)
    np.save(tmp_path / "p.npy", PIXELS)
    evidence = {"auroc": 0.9, "baseline_auroc": 0.8}
    final = final_folder(tmp_path / "final", keras_file)
    return registry.register_version(final, name=model_name, run_id=run.run_id, evidence=evidence)


@pytest.mark.tensorflow
def test_command_answers_as_the_model_does(version, tmp_path, keras_file):
    import keras

    set_alias(version.name, registry.CHAMPION, version.number)
    output = tmp_path / "new" / "out.csv"
    predict.main(input_=tmp_path / "p.npy", output=output)
    rows = list(csv.DictReader(output.read_text().splitlines()))
    expected = keras.saving.load_model(keras_file).predict(PIXELS, verbose=0)[:, 0]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected, atol=1e-6)
    decisions = ["tumour" if p >= 0.4 else "normal" for p in expected]
    assert [row["decision"] for row in rows] == decisions


@pytest.mark.tensorflow
def test_challenger_is_not_used(version, tmp_path):
    """Catches the newest version taken where there is no champion."""
    with pytest.raises(predict.PredictionError, match=f"there is no champion of {version.name};"):
        predict.main(input_=tmp_path / "p.npy", output=tmp_path / "o")


@pytest.mark.tensorflow
def test_tampered_champion_is_not_used(version, tmp_path, monkeypatch):
    set_alias(version.name, registry.CHAMPION, version.number)
    (version.folder / "evidence/operating_point.json").write_text('{"threshold": 0.0}')
    monkeypatch.setattr(scoring, "_load", lambda path: pytest.fail(f"loaded {path}"))
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        predict.main(input_=tmp_path / "p.npy", output=tmp_path / "o")
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        scoring.Scorer(version)


@pytest.mark.tensorflow
def test_version_of_another_contract_scores_nothing(version):
    """Catches the check left out where patches are scored: here, and in the server."""
    assert version.contract == CONTRACT
    version.contract = {**CONTRACT, "format": 2}
    with pytest.raises(ContractError, match="format is 2"):
        scoring.Scorer(version)
