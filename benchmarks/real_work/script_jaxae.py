"""The script in jaxae: train until the test loss is reached, and print it."""

import json
import sys

import jax
import numpy as np

import jaxae
from benchmarks.real_work import images


def main(data, folder, target, learning_rate, batch_size, max_epochs):
    """Train with early stopping by a callback."""
    if data == "synthetic":
        train, test = (X.reshape(len(X), -1) for X in images.synthetic())
    else:
        dataset = jaxae.data.load(data, root=folder)
        train, test = dataset.train, dataset.test
    X, X_test = (images / np.float32(255) for images in (train, test))

    losses = []

    def is_reached(metrics, state):
        losses.append(metrics["validation/loss"])
        return losses[-1] <= target

    ae = jaxae.Autoencoder(input_dim=784, latent_dim=500)
    jaxae.train(
        jaxae.Objective(ae),
        X,
        hparams={"learning_rate": learning_rate},
        key=jax.random.key(0),
        config=jaxae.TrainConfig(
            num_epochs=max_epochs, batch_size=batch_size, diagnostics=False
        ),
        validation=X_test,
        on_epoch=is_reached,
    )
    versions = {module.__name__: module.__version__ for module in (jax, np)}
    print(json.dumps({"test losses": losses, "versions": versions}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
