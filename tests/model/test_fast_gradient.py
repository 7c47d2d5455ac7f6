"""Fast gradients of every convolution of ResNet50 against the stock layer's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from src.model.classifier import build_classifier, cut, unfreeze
from src.model.fast_gradient import fast_input_gradients
from tests.model.support import SMALL, random_patches

pytestmark = pytest.mark.tensorflow

N = 2

# kernel, stride, padding, channels in, channels out, height = width; every one of ResNet50
SHAPES_96_PX = [
    (7, 2, "valid", 3, 64, 102),
    (1, 1, "valid", 64, 64, 24),
    (1, 1, "valid", 64, 256, 24),
    (1, 1, "valid", 256, 64, 24),
    (3, 1, "same", 64, 64, 24),
    (1, 2, "valid", 256, 128, 24),
    (1, 2, "valid", 256, 512, 24),
    (1, 1, "valid", 128, 512, 12),
    (1, 1, "valid", 512, 128, 12),
    (3, 1, "same", 128, 128, 12),
    (1, 2, "valid", 512, 256, 12),
    (1, 2, "valid", 512, 1024, 12),
    (1, 1, "valid", 256, 1024, 6),
    (1, 1, "valid", 1024, 256, 6),
    (3, 1, "same", 256, 256, 6),
    (1, 2, "valid", 1024, 512, 6),
    (1, 2, "valid", 1024, 2048, 6),
    (1, 1, "valid", 512, 2048, 3),
    (1, 1, "valid", 2048, 512, 3),
    (3, 1, "same", 512, 512, 3),
]
_SIZE_AT_64_PX = {102: 70, 24: 16, 12: 8, 6: 4, 3: 2}
SHAPES_64_PX = [(*shape[:5], _SIZE_AT_64_PX[shape[5]]) for shape in SHAPES_96_PX]
OTHER_SHAPES = [
    (1, 2, "same", 4, 6, 5),  # odd size: the last pixel is read
    (1, 3, "valid", 4, 6, 8),  # the last pixels are not read
    (3, 1, "valid", 4, 6, 5),
    (3, 2, "same", 4, 6, 5),
    (5, 1, "same", 4, 6, 5),
]


def _single(kernel, stride, padding, n_in, n_out, size, **options):
    inputs = keras.Input((size, size, n_in))
    layer = keras.layers.Conv2D(n_out, kernel, strides=stride, padding=padding, **options)
    return keras.Model(inputs, layer(inputs))


def _gradients(model, x, *, seed=0, compiled=False):
    """Output, and gradients by input, kernel and bias of a fixed random weighting of the output."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, *x.shape[1:]], x.dtype)], jit_compile=compiled
    )
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
            weights = tf.random.stateless_normal(tf.shape(y), [seed, 1], dtype=y.dtype)
            total = tf.reduce_sum(y * weights)
        variables = [v.value for v in model.trainable_variables]
        return [y, *tape.gradient(total, [x, *variables])]

    return [value.numpy() for value in step(x)]


def _fast(model, x, **options):
    with fast_input_gradients(model):
        return _gradients(model, x, **options)


def _distance(value, reference):
    """Largest difference, relative to the largest magnitude of the reference."""
    return np.abs(value - reference).max() / np.abs(reference).max()


def _input(shape, n=N):
    return np.random.default_rng(0).normal(size=(n, shape[5], shape[5], shape[3])).astype("f")


def _conv_shapes(input_size):
    """What the classifier of this input size is made of, by looking at it."""
    model = build_classifier(SMALL.model_copy(update={"input_size": input_size}))
    return {
        (
            layer.kernel_size[0],
            layer.strides[0],
            layer.padding,
            layer.input.shape[-1],
            layer.filters,
            layer.input.shape[1],
        )
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    }


@pytest.mark.parametrize(("px", "shapes"), [(96, SHAPES_96_PX), (64, SHAPES_64_PX)])
def test_the_shapes_below_are_all_of_resnet50(px, shapes):
    """Catches a list that misses a convolution of the network."""
    assert _conv_shapes(px) == set(shapes)


@pytest.mark.parametrize("shape", SHAPES_96_PX + SHAPES_64_PX + OTHER_SHAPES, ids=str)
def test_gradients_equal_stock_and_forward_is_bit_equal(shape):
    """Catches a kernel turned or transposed wrongly, a stride that reads other pixels."""
    model, x = _single(*shape), _input(shape)
    stock, fast = _gradients(model, x), _fast(model, x)
    np.testing.assert_array_equal(fast[0], stock[0])
    for value, reference in zip(fast[1:], stock[1:], strict=True):
        assert value.shape == reference.shape
        assert _distance(value, reference) < 1e-5


@pytest.mark.parametrize("shape", [SHAPES_96_PX[-1], SHAPES_96_PX[-4]], ids=str)
def test_the_same_under_xla(shape):
    """Catches an operation that XLA can't compile, or compiles into something else."""
    model, x = _single(*shape), _input(shape)
    stock = _gradients(model, x, compiled=True)
    for value, reference in zip(_fast(model, x, compiled=True), stock, strict=True):
        assert _distance(value, reference) < 1e-5


def test_the_same_eagerly():
    """Catches code that only works while a graph is traced."""
    model, x = _single(3, 1, "same", 4, 6, 5), tf.constant(_input((3, 1, "same", 4, 6, 5)))
    gradients = []
    for fast in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            if fast:
                with fast_input_gradients(model):
                    y = model(x)
            else:
                y = model(x)
        gradients.append(tape.gradient(y, [x, model.layers[1].kernel.value]))
    for stock, value in zip(*gradients, strict=True):
        assert _distance(value.numpy(), stock.numpy()) < 1e-5


def _operations(model, shape):
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x)
        return tape.gradient(y, [x, *(v.value for v in model.trainable_variables)])

    graph = step.get_concrete_function(tf.TensorSpec([None, *shape], "float32")).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize(
    ("kernel", "options", "is_fast"),
    [
        (1, {}, True),
        (3, {"padding": "same"}, True),
        (3, {"padding": "valid"}, False),
        (3, {"padding": "same", "strides": 2}, False),
        (3, {"padding": "same", "dilation_rate": 2}, False),
        (1, {"groups": 2}, False),
        (1, {"dtype": "float64"}, False),
    ],
)
def test_only_what_is_recognised_leaves_stock(kernel, options, is_fast):
    """Catches a formula used outside what it holds for, and one that is never used."""
    inputs = keras.Input((5, 5, 4))
    model = keras.Model(inputs, keras.layers.Conv2D(6, kernel, **options)(inputs))
    stock = _operations(model, (5, 5, 4))
    with fast_input_gradients(model):
        fast = _operations(model, (5, 5, 4))
    assert (fast != stock) == is_fast
    assert not (is_fast and "Conv2DBackpropInput" in fast)


def test_layers_are_stock_again_after_an_error():
    """Catches a shadowed operation that outlives the block, and one lost by an inner block."""
    model = _single(1, 1, "valid", 4, 6, 5)
    layer = model.layers[1]
    with fast_input_gradients(model):
        with pytest.raises(ZeroDivisionError), fast_input_gradients(model):
            raise ZeroDivisionError
        assert "convolution_op" in vars(layer)
    with pytest.raises(ZeroDivisionError), fast_input_gradients(model):
        raise ZeroDivisionError
    assert "convolution_op" not in vars(layer)


def test_model_saved_inside_or_after_the_block_is_plain(tmp_path):
    """Catches anything of ours in the saved file."""
    model, x = _single(1, 1, "valid", 4, 6, 5), _input((1, 1, "valid", 4, 6, 5))
    before = model.to_json()
    with fast_input_gradients(model):
        y = model(x)
        model.save(tmp_path / "inside.keras")
    model.save(tmp_path / "after.keras")
    for name in ("inside", "after"):
        loaded = keras.saving.load_model(tmp_path / f"{name}.keras", safe_mode=True)
        assert loaded.to_json() == before
        assert type(loaded.layers[1]) is keras.layers.Conv2D
        np.testing.assert_array_equal(loaded(x), y)


def test_tail_of_the_classifier():
    """Catches a layer that is left out, and shared variables that are not: the whole step."""
    model = build_classifier(SMALL.model_copy(update={"dropout": 0.0}))
    model.get_layer("logit").kernel.assign(np.linspace(-1, 1, 2048, dtype="f")[:, None])
    unfreeze(model, backbone="resnet50", depth=3, batch_norm="frozen")
    trunk, tail = cut(model, backbone="resnet50", depth=3)
    patches = random_patches(4)
    x = trunk(patches, training=False)

    def gradients():
        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tail(x, training=True) ** 2)
            return loss, tape.gradient(loss, [v.value for v in tail.trainable_variables])

        return step(tf.constant(x))

    stock_loss, stock = gradients()
    with fast_input_gradients(tail):
        fast_loss, fast = gradients()
    assert float(fast_loss) == float(stock_loss)
    for value, reference in zip(fast, stock, strict=True):
        assert _distance(value.numpy(), reference.numpy()) < 1e-4
