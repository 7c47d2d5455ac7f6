"""The training loop on a tail of two dense layers: it learns, stops, goes on, and refuses NaN."""

import errno
from dataclasses import replace

import numpy as np
import pytest

from src.data.batches import training_batches
from src.model import checkpoint
from src.model.checkpoint import Checkpoint
from src.model.class_weights import ClassWeights
from src.model.loop import Phase, TrainingDiverged, fit
from src.model.step import TailStep
from src.params import PlateauSchedule, load_params
from src.paths import ROOT
from src.system.durable import DiskFull
from src.system.log import get_logger
from tests.model.support import ArrayInputs

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


def _phase(
    *,
    scale: float = 1.0,
    weights: ClassWeights | None = None,
    checkpoint_s: float = float("inf"),
    **changes,
) -> Phase:
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((N_FEATURES,))
    normal = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(4, name="first")(inputs))
    dropped = keras.layers.Dropout(0.5)(normal)
    tail = keras.Model(inputs, keras.layers.Dense(1)(dropped))
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "views": 2, **changes}
    features, labels = _features(1)
    val_features, val_labels = _features(2)
    params = load_params(ROOT / "presets" / "sample.yaml").train.model_copy(update=settings)
    return Phase(
        name="train",
        tail=tail,
        step=TailStep(tail, params, jit_compile=False),
        train_inputs=ArrayInputs(features * scale),
        val_inputs=ArrayInputs(val_features),
        train_labels=labels,
        val_labels=val_labels,
        weights=weights or ClassWeights(normal=1.0, tumour=1.0),
        params=params,
        auroc=_auroc,
        checkpoint_s=checkpoint_s,
    )


def _checkpoint(folder, **identity) -> Checkpoint:
    return Checkpoint(folder / "train.npz", identity=identity, log=LOG)


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


def test_averaged_weights_have_their_own_batch_statistics(tmp_path):
    """Catches averaged weights scored and kept with the moving statistics of the raw ones."""
    phase = _phase(epochs=3, average_decay=0.9)
    result = fit(phase, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    kernel, bias = phase.tail.get_layer("first").get_weights()
    order = {"n_views": 2, "seed": phase.params.seed, "epoch": result.best_epoch}
    batches = training_batches(N, batch_size=16, **order)
    activations = [phase.train_inputs(batch) @ kernel + bias for batch in batches]
    _, _, mean, variance = phase.tail.get_layer("bn").get_weights()
    np.testing.assert_allclose(mean, np.mean([a.mean(axis=0) for a in activations], axis=0), 1e-5)
    np.testing.assert_allclose(
        variance, np.mean([a.var(axis=0) for a in activations], axis=0), 1e-5
    )


class Killed(Exception):
    pass


RECIPES = [
    {},
    {"optimizer": "adamw", "weight_decay": 0.01, "average_decay": 0.9, "label_smoothing": 0.1},
    {"optimizer": "sgd", "schedule": {"name": "plateau", "factor": 0.5, "patience": 1}},
]


def _recipe(changes: dict) -> dict:
    plateau = PlateauSchedule(name="plateau", factor=0.5, patience=1, min_rate=0.0)
    return {**changes, **({"schedule": plateau} if "schedule" in changes else {})}


@pytest.mark.parametrize(
    ("killed_at_save", "recipe"),
    [(1, RECIPES[0]), (4, RECIPES[0]), (6, RECIPES[0]), (2, RECIPES[1]), (9, RECIPES[2])],
)
def test_an_interrupted_phase_ends_as_the_uninterrupted_one(
    tmp_path, monkeypatch, killed_at_save, recipe
):
    """Catches lost optimizer, average, dropout or schedule state: weights must be equal bit by bit.

    A checkpoint is written after each of the 3 steps of an epoch and after each of the 4 epochs.
    """
    whole = _phase(**_recipe(recipe))
    expected = fit(whole, checkpoint=_checkpoint(tmp_path / "a"), on_epoch=_ignore, log=LOG)

    saves, save = [], Checkpoint.save

    def save_and_die(self, **state):
        save(self, **state)
        saves.append(1)
        if len(saves) == killed_at_save:
            raise Killed

    interrupted = _phase(checkpoint_s=0.0, **_recipe(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            fit(interrupted, checkpoint=_checkpoint(tmp_path / "b"), on_epoch=_ignore, log=LOG)
    resumed, heard = _phase(**_recipe(recipe)), []
    got = fit(resumed, checkpoint=_checkpoint(tmp_path / "b"), on_epoch=heard.append, log=LOG)
    for wanted, weight in zip(whole.tail.get_weights(), resumed.tail.get_weights(), strict=True):
        np.testing.assert_array_equal(wanted, weight)
    assert got.as_dict() == expected.as_dict()
    assert [e.epoch for e in heard] == [1, 2, 3, 4]


def test_a_finished_phase_is_not_trained_again(tmp_path, monkeypatch):
    """Catches an hour of training after a kill that came when all was done."""
    first = _phase()
    expected = fit(first, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    again = _phase()
    monkeypatch.setattr(again.step, "train", None)
    got = fit(again, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    assert got == expected
    for wanted, weight in zip(first.tail.get_weights(), again.tail.get_weights(), strict=True):
        np.testing.assert_array_equal(wanted, weight)


def test_another_work_starts_fresh_and_says_why(tmp_path, caplog):
    """Catches a state that is used for other parameters or data, and a silent fresh start."""
    before = _checkpoint(tmp_path, params={"train": {"epochs": 4}}, code="a" * 64)
    fit(_phase(), checkpoint=before, on_epoch=_ignore, log=LOG)
    caplog.set_level("INFO")
    after = _checkpoint(tmp_path, params={"train": {"epochs": 5}}, code="b" * 64)
    assert after.load() is None
    assert "these changed: code, params.train.epochs (4 → 5)" in caplog.text


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


def _full_disk(monkeypatch, *, n_failures: float) -> list[str]:
    """The first checkpoints end in their second array, as on a full disk; what happens is noted."""
    events, write = [], checkpoint._write

    def fails(archive, name, array):
        if name == "state/1":
            events.append("save")
            if events.count("save") <= n_failures:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(archive, name, array)

    monkeypatch.setattr(checkpoint, "_write", fails)
    return events


def test_a_full_disk_takes_activations_and_not_the_training(tmp_path, monkeypatch):
    """Catches a night's training lost beside gigabytes that could be computed again."""
    events = _full_disk(monkeypatch, n_failures=1)
    phase = replace(_phase(), free_disk=lambda: events.append("free"))
    fit(phase, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    assert events == ["save", "free", *["save"] * 4]  # 4 epochs
    resumed = _phase()
    fit(resumed, checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    for wanted, weight in zip(phase.tail.get_weights(), resumed.tail.get_weights(), strict=True):
        np.testing.assert_array_equal(wanted, weight)


def test_a_disk_that_stays_full_ends_in_one_line(tmp_path, monkeypatch):
    """Catches a traceback, and an endless retry."""
    events = _full_disk(monkeypatch, n_failures=float("inf"))
    with pytest.raises(DiskFull, match=r"disk full: writing .*train\.npz; free some space"):
        fit(_phase(), checkpoint=_checkpoint(tmp_path), on_epoch=_ignore, log=LOG)
    assert events == ["save", "save"]
