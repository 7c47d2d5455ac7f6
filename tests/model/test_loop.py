"""The training loop on a tail of one dense layer: it learns, stops, goes on, and refuses NaN."""

import numpy as np
import pytest

from src.model.checkpoint import Checkpoint
from src.model.class_weights import ClassWeights
from src.model.inputs import feature_inputs
from src.model.loop import Phase, TrainingDiverged, fit
from src.params import load_params
from src.paths import ROOT
from src.system.log import get_logger

pytestmark = pytest.mark.tensorflow
LOG = get_logger("test")
N, N_FEATURES = 40, 5


def _features(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 2
    features = rng.normal(size=(2, N, N_FEATURES)) + 2 * labels[None, :, None]
    return features.astype(np.float32), labels.astype(np.uint8)


def _auroc(labels, logits) -> float:
    positive, negative = logits[labels == 1], logits[labels == 0]
    return float((positive[:, None] > negative[None]).mean())


def _phase(*, scale: float = 1.0, weights: ClassWeights | None = None, **changes) -> Phase:
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((N_FEATURES,))
    dropped = keras.layers.Dropout(0.5)(inputs)
    tail = keras.Model(inputs, keras.layers.Dense(1)(dropped))
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "views": 2, **changes}
    features, labels = _features(1)
    val_features, val_labels = _features(2)
    return Phase(
        name="train",
        tail=tail,
        train_inputs=feature_inputs(features * scale),
        val_inputs=feature_inputs(val_features),
        train_labels=labels,
        val_labels=val_labels,
        weights=weights or ClassWeights(normal=1.0, tumour=1.0),
        params=load_params(ROOT / "presets" / "sample.yaml").train.model_copy(update=settings),
        auroc=_auroc,
        jit_compile=False,
    )


def _checkpoint(folder, key="k") -> Checkpoint:
    return Checkpoint(folder / "train.npz", key=key, log=LOG)


def _ignore(_epoch) -> None:
    pass


def test_it_learns(tmp_path):
    """Catches a loop that doesn't change the tail, or scores val by other weights."""
    phase = _phase(epochs=20)
    result = fit(phase, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].val_auroc > 0.95


def test_the_best_epoch_is_what_remains(tmp_path):
    """Catches a best that is the last."""
    phase = _phase(epochs=6)
    result = fit(phase, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    features, labels = _features(2)
    logits = phase.tail(features[0], training=False).numpy()[:, 0].astype(float)
    best = max(result.history, key=lambda epoch: (epoch.val_auroc, -epoch.epoch))
    assert result.best_epoch == best.epoch
    assert _auroc(labels, logits) == pytest.approx(best.val_auroc)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_an_interrupted_phase_ends_as_the_uninterrupted_one(tmp_path, killed_after):
    """Catches lost optimizer, dropout or schedule state: weights must be equal bit by bit."""
    whole = _phase()
    expected = fit(whole, checkpoint=_checkpoint(tmp_path / "a"), on_epoch=_ignore, log=LOG)

    def kill(epoch):
        if epoch.epoch == killed_after:
            raise Killed

    with pytest.raises(Killed):
        fit(_phase(), checkpoint=_checkpoint(tmp_path / "b"), on_epoch=kill, log=LOG)
    resumed, heard = _phase(), []
    got = fit(resumed, checkpoint=_checkpoint(tmp_path / "b"), on_epoch=heard.append, log=LOG)
    for wanted, weight in zip(whole.tail.get_weights(), resumed.tail.get_weights(), strict=True):
        np.testing.assert_array_equal(wanted, weight)
    assert [e.val_loss for e in got.history] == [e.val_loss for e in expected.history]
    assert [e.epoch for e in heard] == [1, 2, 3, 4]


def test_another_work_starts_fresh(tmp_path):
    """Catches a state that is used for other parameters or data."""
    fit(_phase(), checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    assert _checkpoint(tmp_path, key="other").load() is None


def test_a_torn_state_starts_fresh(tmp_path):
    """Catches a crash on half a file."""
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 torn")
    assert _checkpoint(tmp_path).load() is None


def test_class_weights_reach_the_loss(tmp_path):
    """Catches weights that are logged and not used: twice the weight, twice the first loss."""
    losses = []
    for factor in (1.0, 2.0):
        weights = ClassWeights(normal=factor, tumour=factor)
        phase = _phase(epochs=1, learning_rate=1e-9, weights=weights)
        result = fit(
            phase, checkpoint=_checkpoint(tmp_path / str(factor)), on_epoch=_ignore, log=LOG
        )
        losses.append(result.history[0].loss)
    assert losses[1] == pytest.approx(2 * losses[0])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    """Catches hours of training on NaN; the message names the epoch and the remedy."""
    phase = _phase(scale=float("nan"))
    with pytest.raises(TrainingDiverged, match=r"loss is nan in epoch 1; lower train\.learning"):
        fit(phase, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
