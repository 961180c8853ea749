"""The model in Keras 3; KERAS_BACKEND chooses its back end."""

import keras
import numpy as np
from keras import ops

from benchmarks.one_model.work import Work

OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}


class Decoder(keras.layers.Layer):
    """The decoder's pre-activations, with the encoder's kernel if tied."""

    def __init__(self, work: Work, encoder):
        super().__init__()
        self.encoder, self.tied = encoder, work.tied
        shape = (work.latent_dim, work.input_dim)
        if not work.tied:
            self.kernel = self.add_weight(shape=shape)
        self.c = self.add_weight(shape=(work.input_dim,), initializer="zeros")

    def call(self, z):
        """`[B, H]` to `[B, D]`."""
        W = ops.transpose(self.encoder.kernel) if self.tied else self.kernel
        return ops.matmul(z, W) + self.c


def train(**options):
    """`compile` and `fit`; the compiled model is used again for every run."""
    work = Work(**options)
    keras.config.set_dtype_policy(work.dtype)
    X = work.data()
    weights = work.weights()
    encoder = keras.layers.Dense(work.latent_dim, activation="sigmoid")
    x = keras.Input((work.input_dim,))
    z = encoder(x)
    decoder = Decoder(work, encoder)
    model = keras.Model(x, decoder(z))

    def loss(target, eta):
        if work.tied:
            terms = ops.maximum(eta, 0) - eta * target + ops.log1p(ops.exp(-abs(eta)))
        else:
            terms = 0.5 * ops.square(eta - target)
        return ops.sum(terms, axis=-1)

    optimizer = OPTIMIZERS[work.optimizer](learning_rate=work.learning_rate)
    model.compile(optimizer=optimizer, loss=loss)

    def run() -> float:
        encoder.set_weights([weights[0].T, np.zeros(work.latent_dim)])
        decoder.c.assign(np.zeros(work.input_dim))
        if not work.tied:
            decoder.kernel.assign(weights[1])
        for variable in optimizer.variables[2:]:  # after iteration and learning rate
            variable.assign(np.zeros(variable.shape))
        optimizer.iterations.assign(0)
        fitted = model.fit(
            X, X, batch_size=work.batch_size, epochs=work.num_epochs, verbose=0
        )
        return float(np.mean(fitted.history["loss"]))

    return run
