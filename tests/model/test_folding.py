"""The folded trunk against the trunk."""

import numpy as np
import pytest

from tests.model.support import SMALL, random_patches

pytestmark = pytest.mark.tensorflow


def test_folded_trunk_gives_the_outputs_of_the_trunk_and_leaves_it_alone():
    """Catches a wrong scale or offset, a layer left unfolded, and a trunk changed by folding."""
    import keras

    from src.model.classifier import build_classifier
    from src.model.folding import folded
    from src.model.freezing import cut

    rng = np.random.default_rng(0)
    model = build_classifier(SMALL)
    trunk, _ = cut(model, backbone="resnet50", depth=3)
    norms = [x for x in trunk.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in norms:
        gamma, variance = rng.uniform(0.5, 1.5, (2, layer.gamma.shape[0]))
        beta, mean = rng.normal(size=(2, layer.gamma.shape[0])) / 10
        layer.set_weights([gamma, beta, mean, variance])
    patches = random_patches(4)
    expected = trunk(patches, training=False).numpy()
    copy = folded(trunk)
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in copy.layers)
    value = copy(patches, training=False).numpy()
    np.testing.assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(trunk(patches, training=False), expected)


def test_what_another_layer_reads_is_not_folded():
    """Catches a convolution whose own output is still needed."""
    import keras

    from src.model.folding import folded

    inputs = keras.Input((4, 4, 3))
    y = keras.layers.Conv2D(2, 1)(inputs)
    model = keras.Model(inputs, keras.layers.Add()([y, keras.layers.BatchNormalization()(y)]))
    model.layers[2].set_weights(list(np.array([[2.0, 3], [1, 1], [0.5, 0.5], [4, 9]])))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(folded(model)(x), model(x, training=False))


def test_other_cuts_of_the_classifier_change_nothing():
    """Catches layers left unfolded because another cut reads them too: other bits, by the order in
    which depths are tried."""
    import keras

    from src.model.classifier import build_classifier
    from src.model.folding import folded
    from src.model.freezing import cut

    model = build_classifier(SMALL)
    trunk = [cut(model, backbone="resnet50", depth=depth)[0] for depth in (3, 1, 9, 0)][-1]
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in folded(trunk).layers)
