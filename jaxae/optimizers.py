"""optax transformations as functions of hyperparameters: hparams -> transformation.

Called inside the traced function, so that every number is traced: nothing recompiles
and any of them can be a sweep's lane. Write your own likewise:

    lambda hp: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(hp["learning_rate"])
    )
"""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from jaxae import _checks

Optimizer = Callable[[Mapping[str, Any]], optax.GradientTransformation]


def adam(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam; reads `learning_rate`. Kingma and Ba, 2015."""
    return optax.adam(hparams["learning_rate"])


def sgd(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Stochastic gradient descent; reads `learning_rate`."""
    return optax.sgd(hparams["learning_rate"])


def momentum(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum; reads `learning_rate`, `momentum`."""
    return optax.sgd(hparams["learning_rate"], momentum=hparams["momentum"])


def adamw(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam with decoupled decay; reads `learning_rate`, `adamw_decay`.

    Loshchilov and Hutter, 2019. The decay is not called weight_decay here: that is a
    penalty's coefficient.
    """
    return optax.adamw(hparams["learning_rate"], weight_decay=hparams["adamw_decay"])


def rmsprop(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    """RMSProp; reads `learning_rate`. Tieleman and Hinton, 2012."""
    return optax.rmsprop(hparams["learning_rate"])


CATALOGUE: dict[str, Optimizer] = {
    o.__name__: o for o in (adam, sgd, momentum, adamw, rmsprop)
}


def get(name: str) -> Optimizer:
    """The optimiser of that name.

    Raises:
      ValueError: for an unknown name; the message lists the known ones.
    """
    return _checks.lookup("optimizer", CATALOGUE, name)
