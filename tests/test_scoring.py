"""Every command that scores starts TensorFlow in full float32."""

from types import SimpleNamespace

import pytest

from src import paths, predict, promote, register, serve
from src.tracking import registry


class Started(Exception):
    """A command has started TensorFlow and goes on to its work."""


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "begin",
    [
        register.main,
        lambda: promote.main(version=1),
        lambda: promote.main(rollback=True),
        predict.main,
        lambda: predict.main(input_="in", output=paths.ROOT / "new.csv"),
        lambda: serve._load_pyfunc("folder"),
    ],
    ids=["register", "promote", "rollback", "predict", "predict --input", "serve"],
)
def test_scores_are_made_without_tf32(begin, monkeypatch):
    """Catches products on 10 bits of mantissa, which differ from graph to graph."""
    import tensorflow as tf

    def started(*_, **__):
        raise Started

    version = SimpleNamespace(name="m", number=1, manifest_sha256="", verify=lambda: None)
    champion = SimpleNamespace(name="m", number=2, verify=lambda: None)
    for name in ("src.model.inference.load_classifier", "src.model.scorer.Scorer"):
        monkeypatch.setattr(name, started)
    for name in ("src.model.scorer.HoldoutScores", "src.tracking.registry.version_in"):
        monkeypatch.setattr(name, started)
    for module in (register, promote):
        monkeypatch.setattr(module, "read_holdout", started)
    monkeypatch.setattr(register, "check_trained_here", lambda *_: None)
    monkeypatch.setattr(registry, "champion_of", lambda _: champion)
    monkeypatch.setattr(registry, "find_version", lambda *_: version)
    monkeypatch.setattr(registry, "aliases", lambda _: {})
    monkeypatch.setattr("src.tracking.promotions.champion_before", lambda *_: version)
    said = {"no_submission": False, "digests": {}, "name": "m"}
    chosen = {"predict_with": {"role": "champion", "version": 1}}
    monkeypatch.setattr(predict, "read_json", lambda _: said | chosen)
    monkeypatch.setattr(predict, "check_chosen", lambda *_, **__: None)
    monkeypatch.setattr(predict, "open_input", lambda _: None)
    tf.config.experimental.enable_tensor_float_32_execution(True)
    with pytest.raises(Started):
        begin()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
