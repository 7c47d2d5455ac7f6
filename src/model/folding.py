"""The frozen trunk with BatchNorm folded into its convolutions, for inference."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras


def folded(trunk: "keras.Model") -> "keras.Model":
    """A copy of ``trunk`` in which every BatchNorm straight after a convolution is part of it.

    Its outputs are those of ``trunk(…, training=False)`` to rounding (about 2e-6 of the largest
    one; not bit-equal), with two passes over memory fewer after each convolution. The copy holds
    the trunk's weights of this moment and shares none of them: it is not for training.

    Frozen BatchNorm is the affine map γ (y - μ) / √(σ² + ε) + β of the convolution's output
    y = K x + b, hence itself a convolution with kernel K γ / √(σ² + ε) (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2). Computed in float64, stored in float32.
    """
    import keras

    after = {
        normalisation.name: convolution.name
        for convolution in trunk.layers
        if (normalisation := _only_batch_norm_after(convolution)) is not None
        and normalisation in trunk.layers
    }

    def call(layer: "keras.layers.Layer", *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in after else layer(*args, **kwargs)

    copy = keras.models.clone_model(trunk, call_function=call)
    for layer in filter(lambda layer: layer.weights, copy.layers):
        layer.set_weights(trunk.get_layer(layer.name).get_weights())
    for normalisation, convolution in after.items():
        weights = _folded_weights(trunk.get_layer(convolution), trunk.get_layer(normalisation))
        copy.get_layer(convolution).set_weights(weights)
    return copy


def _only_batch_norm_after(layer: "keras.layers.Layer") -> "keras.layers.Layer | None":
    """The BatchNorm that alone reads a convolution with bias and no activation; None if not so."""
    import keras

    consumers = [node.operation for node in layer._outbound_nodes]
    foldable = (
        type(layer) is keras.layers.Conv2D
        and layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and len(consumers) == 1
        and type(consumers[0]) is keras.layers.BatchNormalization
    )
    return consumers[0] if foldable else None


def _folded_weights(
    convolution: "keras.layers.Conv2D", normalisation: "keras.layers.BatchNormalization"
) -> list[NDArray[np.float64]]:
    kernel, bias = (w.astype(np.float64) for w in convolution.get_weights())
    gamma, beta, mean, variance = (w.astype(np.float64) for w in normalisation.get_weights())
    scale = gamma / np.sqrt(variance + normalisation.epsilon)
    return [kernel * scale, (bias - mean) * scale + beta]
