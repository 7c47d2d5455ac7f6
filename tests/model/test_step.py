"""The training step: its loss by hand, rates by block, the average of the weights, its state."""

import keras
import numpy as np
import pytest

from src.model.classifier import build_classifier, cut, unfreeze
from src.model.step import TailStep, weighted_loss
from tests.model.support import SMALL, finetune_params, small_tail, train_params

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(3)
BATCH = (
    RNG.normal(size=(8, 4)).astype(np.float32),
    (np.arange(8) % 2).astype(np.float32),
    np.ones(8, np.float32),
    np.ones(8, np.float32),
)


def _loss(label_smoothing: float, *, counted=(1, 1, 0), n_counted=2.0) -> float:
    logits = np.array([0.0, np.log(3), 5.0], np.float32)
    labels = np.array([1.0, 1.0, 0.0], np.float32)
    weights = np.array([1.0, 2.0, 9.0], np.float32)
    share = weighted_loss(
        logits,
        labels,
        weights,
        np.array(counted, np.float32),
        label_smoothing=label_smoothing,
        n_counted=n_counted,
    )
    return float(share)


def test_loss_by_hand():
    """Catches padding in the loss, lost class weights, smoothing of the wrong size."""
    assert _loss(0.0) == pytest.approx((np.log(2) + 2 * np.log(4 / 3)) / 2)
    # labels 1 become 0.9, so a tenth of -log(1 - p) = log 4 comes in
    smoothed = np.log(2) + 2 * (0.9 * np.log(4 / 3) + 0.1 * np.log(4))
    assert _loss(0.2) == pytest.approx(smoothed / 2)


def test_shares_of_two_replicas_add_up():
    """Catches a mean per replica: the last batch's padding would be counted on one of them."""
    shares = _loss(0.1, counted=(1, 0, 0)) + _loss(0.1, counted=(0, 1, 0))
    assert shares == pytest.approx(_loss(0.1))


def _first_updates(**changes) -> dict[str, np.ndarray]:
    tail = small_tail()
    step = TailStep(tail, finetune_params(**changes), jit_compile=False, backbone="resnet50")
    step.set_rate(0.125)
    before = {v.path: v.numpy() for v in tail.trainable_variables}
    step.train(*BATCH)
    return {v.path: v.numpy() - before[v.path] for v in tail.trainable_variables}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_lower_block_takes_smaller_steps(optimizer):
    """Catches factors on the gradient, which Adam undoes. Biases start at 0: steps are exact."""
    whole = _first_updates(optimizer=optimizer, rate_decay=1.0)
    decayed = _first_updates(optimizer=optimizer, rate_decay=0.5)
    for layer, factor in (
        ("logit", 1.0),
        ("conv5_block3_1_conv", 0.5),
        ("conv5_block2_1_conv", 0.25),
        ("conv1_conv", 0.5**17),
    ):
        assert np.any(whole[f"{layer}/bias"])
        np.testing.assert_array_equal(decayed[f"{layer}/bias"], factor * whole[f"{layer}/bias"])


def _averaging_step(tail, **changes):
    return TailStep(tail, train_params(average_decay=0.9, **changes), jit_compile=False)


def test_average_by_hand():
    """Catches an average of the weights before the step, and a warm-up that is off by one."""
    tail = small_tail()
    step = _averaging_step(tail)
    step.set_rate(0.1)
    average = tail.get_layer("logit").kernel.numpy()
    for decay in (1 / 10, 2 / 11, 3 / 12):
        step.train(*BATCH)
        average = decay * average + (1 - decay) * tail.get_layer("logit").kernel.numpy()
    with step.averaged([]):
        np.testing.assert_allclose(tail.get_layer("logit").kernel, average, rtol=1e-5)


def test_weights_come_back_exactly_after_being_averaged():
    """Catches a swap by arithmetic, and one that an error leaves in place."""
    tail = small_tail()
    step = _averaging_step(tail)
    step.set_rate(0.1)
    step.train(*BATCH)
    before = tail.get_weights()
    with step.averaged([]):
        assert not np.array_equal(tail.get_weights()[0], before[0])
    _assert_equal(tail.get_weights(), before)
    with pytest.raises(RuntimeError, match="val"), step.averaged([]):
        raise RuntimeError("val")
    _assert_equal(tail.get_weights(), before)


def test_without_average_the_weights_stay():
    """Catches a swap with nothing to swap in."""
    tail = small_tail()
    step = TailStep(tail, train_params(), jit_compile=False)
    before = tail.get_weights()
    with step.averaged([]):
        _assert_equal(tail.get_weights(), before)
    assert step.averaging is None


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_goes_on_from_its_variables(jit_compile):
    """Catches state that isn't listed: another optimizer's, the average's or its step count's."""
    params = finetune_params(optimizer="adamw", rate_decay=0.5, average_decay=0.99)

    def started(tail):
        step = TailStep(tail, params, jit_compile=jit_compile, backbone="resnet50")
        step.set_rate(0.1)
        return step

    whole = small_tail()
    step = started(whole)
    step.train(*BATCH)
    resumed = small_tail()
    other = started(resumed)
    resumed.set_weights(whole.get_weights())
    for mine, theirs in zip(other.variables, step.variables, strict=True):
        mine.assign(theirs.numpy())
    for _ in range(2):
        step.train(*BATCH)
        other.train(*BATCH)
    _assert_equal(resumed.get_weights(), whole.get_weights())
    with step.averaged([]), other.averaged([]):
        _assert_equal(resumed.get_weights(), whole.get_weights())


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_norm_of_the_freed_blocks(batch_norm):
    """Catches BatchNorm that learns when frozen, or doesn't when trained, statistics included."""
    model = build_classifier(SMALL.model_copy(update={"backbone": "resnet_tiny"}))
    model.get_layer("logit").kernel.assign(np.ones((256, 1)))  # from zeros nothing would be learnt
    unfreeze(model, backbone="resnet_tiny", depth=2, batch_norm=batch_norm)
    _, tail = cut(model, backbone="resnet_tiny", depth=2)
    inputs = RNG.normal(size=(8, *tail.input_shape[1:])).astype(np.float32)
    step = TailStep(tail, finetune_params(), jit_compile=False, backbone="resnet_tiny")
    step.set_rate(0.1)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = {layer.name: layer.get_weights() for layer in norms}
    step.train(inputs, *BATCH[1:])
    for layer in norms:
        freed = layer.name.startswith(("conv4", "conv5")) and batch_norm == "train"
        for was, now in zip(before[layer.name], layer.get_weights(), strict=True):
            assert np.array_equal(was, now) != freed, layer.name


def test_averaged_weights_of_a_real_tail_have_their_own_statistics():
    """Catches layers of another cut, statistics left behind, and dropout that draws on the way."""
    model = build_classifier(SMALL.model_copy(update={"backbone": "resnet_tiny"}))
    unfreeze(model, backbone="resnet_tiny", depth=2, batch_norm="train")
    _, tail = cut(model, backbone="resnet_tiny", depth=2)
    batches = RNG.normal(size=(2, 8, *tail.input_shape[1:])).astype(np.float32)
    params = finetune_params(average_decay=0.9)
    step = TailStep(tail, params, jit_compile=False, backbone="resnet_tiny")
    step.set_rate(0.01)
    for batch in batches:
        step.train(batch, *BATCH[1:])
    norms = [x for x in tail.layers if isinstance(x, keras.layers.BatchNormalization)]
    moving = [v for x in norms if x.trainable for v in (x.moving_mean, x.moving_variance)]
    before = [variable.numpy() for variable in model.variables]
    with step.averaged(batches):
        measured = [variable.numpy() for variable in moving]
        _assert_equal(
            [v.numpy() for v in model.variables if "seed" in v.path],
            [b for v, b in zip(model.variables, before, strict=True) if "seed" in v.path],
        )
        by_batch = []
        for batch in batches:  # undone: moving ← 0.99 moving + 0.01 of the batch
            held = [variable.numpy().astype(np.float64) for variable in moving]
            tail(batch, training=True)
            by_batch.append(
                [100 * (v.numpy() - 0.99 * h) for v, h in zip(moving, held, strict=True)]
            )
    for got, *of_batches in zip(measured, *by_batch, strict=True):
        np.testing.assert_allclose(got, np.mean(of_batches, axis=0), rtol=1e-3, atol=1e-3)
    after = [v.numpy() for v in model.variables if "seed" not in v.path]
    _assert_equal(
        after, [b for v, b in zip(model.variables, before, strict=True) if "seed" not in v.path]
    )


def _assert_equal(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
