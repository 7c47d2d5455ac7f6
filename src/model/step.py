"""The compiled training step and the compiled forward pass of a tail."""

from typing import TYPE_CHECKING, Any

from src.params import TrainParams

if TYPE_CHECKING:
    import keras


class TailStep:
    """One optimizer, one training step and one forward pass for the trainable part of a model.

    The loss is the class-weighted binary cross-entropy of the logits, averaged over the patches
    that count. Weight decay is decoupled (AdamW) and spares biases and BatchNorm parameters.
    ``jit_compile`` turns XLA on.
    """

    def __init__(self, tail: "keras.Model", params: TrainParams, *, jit_compile: bool) -> None:
        import keras
        import tensorflow as tf

        variables = tail.trainable_variables
        optimizer = keras.optimizers.Adam(weight_decay=params.weight_decay or None)
        if params.weight_decay:
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        optimizer.build(variables)

        @tf.function(jit_compile=jit_compile)
        def train(inputs: Any, labels: Any, weights: Any, counted: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = tail(inputs, training=True)[:, 0]
                losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
                loss = tf.reduce_sum(losses * weights * counted) / tf.reduce_sum(counted)
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        @tf.function(jit_compile=jit_compile)
        def forward(inputs: Any) -> Any:
            return tail(inputs, training=False)[:, 0]

        self.train = train
        self.forward = forward
        self.optimizer = optimizer

    def set_rate(self, rate: float) -> None:
        """Learning rate of the next steps."""
        self.optimizer.learning_rate.assign(rate)
