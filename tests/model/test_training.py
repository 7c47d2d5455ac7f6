"""The training loop on a tail of two dense layers: it learns, stops, goes on, and refuses NaN.

Class weights against numbers worked out by hand and against scikit-learn.
"""

import errno
from dataclasses import asdict

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from src.data.batches import training_batches
from src.model import checkpoint
from src.model.checkpoint import Checkpoint
from src.model.step import TailStep
from src.model.training import OneClassOnly, Training, TrainingDiverged, class_weights
from src.params import ClassWeights, PlateauSchedule, load_params
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


def _training(
    folder=None,
    *,
    scale: float = 1.0,
    checkpoint_s: float = float("inf"),
    free_disk=lambda: None,
    **changes,
) -> Training:
    """A phase whose state is kept in ``folder``."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((N_FEATURES,))
    normal = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(4, name="first")(inputs))
    dropped = keras.layers.Dropout(0.5)(normal)
    tail = keras.Model(inputs, keras.layers.Dense(1)(dropped))
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "views": 2, **changes}
    features, labels = _features(1)
    val_features, val_labels = _features(2)
    params = load_params(ROOT / "presets" / "sample.yaml").train.model_copy(update=settings)
    return Training(
        "train",
        params,
        tail,
        TailStep(tail, params, jit_compile=False),
        ArrayInputs(features * scale),
        ArrayInputs(val_features),
        labels,
        val_labels,
        checkpoint=None if folder is None else _checkpoint(folder),
        checkpoint_s=checkpoint_s,
        free_disk=free_disk,
        log=LOG,
    )


def _fitted(training: Training, hear=lambda _: None) -> list[dict]:
    """What each epoch did, times apart."""
    training.fit(hear)
    return [{**asdict(epoch), "epoch_s": None} for epoch in training.history]


def _checkpoint(folder, **identity) -> Checkpoint:
    return Checkpoint(folder / "train.npz", identity=identity, log=LOG)


def _assert_equal_weights(one: Training, other: Training) -> None:
    for wanted, got in zip(one.tail.get_weights(), other.tail.get_weights(), strict=True):
        np.testing.assert_array_equal(wanted, got)


def test_it_learns():
    """Catches a loop that doesn't change the tail, or scores val by other weights."""
    history = _fitted(_training(epochs=20))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["val_auroc"] > 0.95


def test_the_best_epoch_is_what_remains():
    """Catches a best that is the last, and an AUROC that isn't scikit-learn's."""
    training = _training(epochs=6)
    history = _fitted(training)
    features, labels = _features(2)
    logits = training.tail(features[0], training=False).numpy()[:, 0]
    best = max(history, key=lambda epoch: (epoch["val_auroc"], -epoch["epoch"]))
    assert training.patience.best_epoch == best["epoch"]
    assert roc_auc_score(labels, logits) == pytest.approx(best["val_auroc"])


def test_averaged_weights_have_their_own_batch_statistics():
    """Catches averaged weights scored and kept with the moving statistics of the raw ones."""
    training = _training(epochs=3, average_decay=0.9)
    _fitted(training)
    kernel, bias = training.tail.get_layer("first").get_weights()
    order = {"n_views": 2, "seed": training.params.seed, "epoch": training.patience.best_epoch}
    batches = training_batches(N, batch_size=16, **order)
    activations = [training.train_inputs(batch) @ kernel + bias for batch in batches]
    _, _, mean, variance = training.tail.get_layer("bn").get_weights()
    np.testing.assert_allclose(mean, np.mean([a.mean(axis=0) for a in activations], axis=0), 1e-5)
    np.testing.assert_allclose(
        variance, np.mean([a.var(axis=0) for a in activations], axis=0), 1e-5
    )


class Killed(Exception):
    pass


PLATEAU = PlateauSchedule(name="plateau", factor=0.5, patience=1, min_rate=0.0)
RECIPES = [
    {},
    {"optimizer": "adamw", "weight_decay": 0.01, "average_decay": 0.9, "label_smoothing": 0.1},
    {"optimizer": "sgd", "schedule": PLATEAU},
]


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
    whole = _training(**recipe)
    expected = _fitted(whole)
    saves, save = [], Checkpoint.save

    def save_and_die(self, **state):
        save(self, **state)
        saves.append(1)
        if len(saves) == killed_at_save:
            raise Killed

    interrupted = _training(tmp_path, checkpoint_s=0.0, **recipe)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            _fitted(interrupted)
    resumed, heard = _training(tmp_path, **recipe), []
    assert _fitted(resumed, heard.append) == expected
    assert [e.epoch for e in heard] == [1, 2, 3, 4]
    _assert_equal_weights(whole, resumed)


def test_a_finished_phase_is_not_trained_again(tmp_path, monkeypatch):
    """Catches an hour of training after a kill that came when all was done."""
    first, again = _training(tmp_path), _training(tmp_path)
    expected = _fitted(first)
    monkeypatch.setattr(again.step, "train", None)
    assert _fitted(again) == expected
    _assert_equal_weights(first, again)


def test_another_work_starts_fresh_and_says_why(tmp_path, caplog):
    """Catches a state that is used for other parameters or data, and a silent fresh start."""
    before = _checkpoint(tmp_path, params={"train": {"epochs": 4}}, code="a" * 64)
    before.save(arrays={}, facts={})
    caplog.set_level("INFO")
    after = _checkpoint(tmp_path, params={"train": {"epochs": 5}}, code="b" * 64)
    assert after.load() is None
    assert "these changed: code, params.train.epochs (4 → 5)" in caplog.text


def test_a_torn_state_starts_fresh(tmp_path):
    """Catches a crash on half a file."""
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 torn")
    assert _checkpoint(tmp_path).load() is None


def test_class_weights_reach_the_loss():
    """Catches weights that are logged and not used: twice the weight, twice the first loss."""
    once, twice = (
        _fitted(
            _training(
                epochs=1,
                learning_rate=1e-9,
                class_weights=ClassWeights(normal=factor, tumour=factor),
            )
        )
        for factor in (1.0, 2.0)
    )
    assert twice[0]["loss"] == pytest.approx(2 * once[0]["loss"])


def test_a_loss_that_is_no_number_stops_the_run():
    """Catches hours of training on NaN; the message names the epoch and the remedy."""
    with pytest.raises(TrainingDiverged, match=r"loss is nan in epoch 1; lower train\.learning"):
        _fitted(_training(scale=float("nan")))


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
    training = _training(tmp_path, free_disk=lambda: events.append("free"))
    _fitted(training)
    assert events == ["save", "free", *["save"] * 4]  # 4 epochs
    resumed = _training(tmp_path)
    _fitted(resumed)
    _assert_equal_weights(training, resumed)


def test_a_disk_that_stays_full_ends_in_one_line(tmp_path, monkeypatch):
    """Catches a traceback, and an endless retry."""
    events = _full_disk(monkeypatch, n_failures=float("inf"))
    with pytest.raises(DiskFull, match=r"disk full: writing .*train\.npz; free some space"):
        _fitted(_training(tmp_path))
    assert events == ["save", "save"]


LABELS = np.array([0] * 6 + [1] * 4, np.uint8)


def test_balanced_weights_by_hand_and_by_scikit_learn():
    """Catches swapped classes, and another normalisation: 6 normal, 4 tumour: 10/12 and 10/8."""
    weights = class_weights(LABELS, "balanced")
    assert weights == pytest.approx({"normal": 10 / 12, "tumour": 10 / 8})
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=LABELS)
    assert list(weights.values()) == pytest.approx(expected.tolist())


def test_other_class_weights():
    """Catches a setting that is read but not used."""
    assert class_weights(LABELS, "none") == {"normal": 1, "tumour": 1}
    explicit = ClassWeights(normal=1, tumour=3)
    assert class_weights(LABELS, explicit) == {"normal": 1, "tumour": 3}


def test_one_class_is_refused():
    """Catches a division by zero that becomes an infinite weight."""
    with pytest.raises(OneClassOnly, match="10 normal, 0 tumour"):
        class_weights(np.zeros(10, np.uint8), "balanced")
