"""Convolutions whose gradients are fast on a CPU, with the stock forward pass.

TensorFlow's own CPU kernel for the input gradient (``Conv2DBackpropInput``, the one without oneDNN)
is many times slower than the forward pass where the map is small and the channels are many. Two
identities give the same gradient through kernels that are fast:

- a 1×1 convolution is a matrix product of rows (pixels) and channels, and so are both gradients;
- the input gradient of a 3×3 convolution of stride 1 and padding ``same`` is the convolution of the
  output's gradient with the kernel turned by 180° and its channels transposed (Dumoulin and Visin
  2016, "A guide to convolution arithmetic for deep learning", section 4).

Its kernel for the filter gradient is replaced in the same way, by products over the pixels.
:func:`src.model.phases.step_ways` says where this is used, docs/training.md what it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

Gradient = Callable[[Any, Any, Any], Any]
"""input (n, h, w, c), kernel (k, k, c, o), gradient of the output → gradient."""

_IM2COL_PIXELS = 16  # up to 4×4 px the nine shifted copies of the input cost less than they save


@contextmanager
def fast_input_gradients(model: keras.Model) -> Iterator[None]:
    """Give every plain ``Conv2D`` of ``model`` fast gradients while the block runs.

    What is traced or run inside the block keeps them; the outputs are those of the stock layer, bit
    by bit, and the gradients agree to rounding. Only the layers' ``convolution_op`` is shadowed:
    variables, class, configuration and saved file stay stock. Convolutions of another shape (the
    7×7 stem), grouped, dilated, channels first, not float32, or of unknown height and width, keep
    the stock gradient.
    """
    shadowed = [layer for layer in _conv2d_layers(model) if "convolution_op" not in vars(layer)]
    try:
        for layer in shadowed:
            layer.convolution_op = _fast_convolution(layer)
        yield
    finally:
        for layer in shadowed:
            vars(layer).pop("convolution_op", None)


def _conv2d_layers(model: keras.Model) -> list[keras.layers.Conv2D]:
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    plain = [layer for layer in model.layers if type(layer) is keras.layers.Conv2D]
    return plain + [layer for inner in nested for layer in _conv2d_layers(inner)]


def _fast_convolution(layer: keras.layers.Conv2D) -> Callable[[Any, Any], Any]:
    stock = layer.convolution_op

    def convolution(inputs: Any, kernel: Any) -> Any:
        x, k = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        gradients = _gradients(layer, x, k)
        if gradients is None:
            return stock(inputs, kernel)
        input_gradient, filter_gradient = gradients

        @tf.custom_gradient
        def exact(x: Any, k: Any) -> Any:
            def backward(dy: Any) -> tuple[Any, Any]:
                return input_gradient(x, k, dy), filter_gradient(x, k, dy)

            return stock(x, k), backward

        return exact(x, k)

    return convolution


def _gradients(layer: keras.layers.Conv2D, x: Any, k: Any) -> tuple[Gradient, Gradient] | None:
    """Fast input and filter gradient of this layer on this input; None where only stock will do."""
    height, width = x.shape[1:3]
    usual = (
        layer.data_format == "channels_last"
        and layer.groups == 1
        and tuple(layer.dilation_rate) == (1, 1)
        and x.dtype == k.dtype == "float32"
        and None not in (height, width)
    )
    if usual and tuple(layer.kernel_size) == (1, 1):
        return _pointwise_gradients(tuple(layer.strides))
    if (
        usual
        and tuple(layer.kernel_size) == (3, 3)
        and tuple(layer.strides) == (1, 1)
        and layer.padding == "same"
    ):
        small = height * width <= _IM2COL_PIXELS
        return _turned_convolution, _im2col_product if small else _stock_filter_gradient
    return None


def _pointwise_gradients(strides: tuple[int, int]) -> tuple[Gradient, Gradient]:
    """Both gradients of a 1×1 convolution: of its stride only the pixels that it reads matter.

    Pooling over one pixel picks those, and its gradient puts them back: the same as slicing by the
    stride, several times faster.
    """
    strided = strides != (1, 1)
    pooling: dict[str, Any] = {
        "ksize": [1, 1, 1, 1],
        "strides": [1, *strides, 1],
        "padding": "VALID",
    }

    def of_input(x: Any, k: Any, dy: Any) -> Any:
        height, width, n_in = x.shape[1:]
        rows = tf.matmul(_pixel_rows(dy), k[0, 0], transpose_b=True)
        if not strided:
            return tf.reshape(rows, [-1, height, width, n_in])
        read = tf.reshape(rows, [-1, *dy.shape[1:3], n_in])
        return tf.raw_ops.AvgPoolGrad(orig_input_shape=tf.shape(x), grad=read, **pooling)

    def of_filter(x: Any, k: Any, dy: Any) -> Any:
        read = tf.raw_ops.AvgPool(value=x, **pooling) if strided else x
        product = tf.matmul(_pixel_rows(read), _pixel_rows(dy), transpose_a=True)
        return tf.reshape(product, k.shape)

    return of_input, of_filter


def _turned_convolution(x: Any, k: Any, dy: Any) -> Any:  # noqa: ARG001
    """Input gradient of a 3×3 convolution, stride 1, padding ``same``."""
    turned = tf.transpose(tf.reverse(k, axis=[0, 1]), [0, 1, 3, 2])
    return tf.nn.conv2d(dy, turned, strides=1, padding="SAME")


def _im2col_product(x: Any, k: Any, dy: Any) -> Any:
    """Filter gradient of a 3×3 convolution: nine shifted copies of the input, one product."""
    height, width = x.shape[1:3]
    padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    columns = _pixel_rows(tf.concat(shifted, axis=-1))
    return tf.reshape(tf.matmul(columns, _pixel_rows(dy), transpose_a=True), k.shape)


def _stock_filter_gradient(x: Any, k: Any, dy: Any) -> Any:
    return tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=k.shape, out_backprop=dy, strides=[1, 1, 1, 1], padding="SAME"
    )


def _pixel_rows(images: Any) -> Any:
    """(n, h, w, c) → (n·h·w, c)."""
    return tf.reshape(images, [-1, images.shape[-1]])
