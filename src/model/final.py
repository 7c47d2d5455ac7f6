"""The classifier that is served: the same network with a calibrated probability as output."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def probability_classifier(model: "keras.Model", *, temperature: float) -> "keras.Model":
    """uint8 (n, 96, 96, 3) → probability of tumour (n, 1) float32: sigmoid(logit / temperature).

    Temperature scaling (Guo et al. 2017): ``temperature`` > 0, fitted on val; no ranking changes.
    """
    import keras

    calibrated = keras.layers.Rescaling(1.0 / temperature, name="temperature")(model.output)
    probability = keras.layers.Activation("sigmoid", name="probability")(calibrated)
    return keras.Model(model.input, probability, name="tumour_probability")
