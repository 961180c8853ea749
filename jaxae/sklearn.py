"""An autoencoder as a scikit-learn transformer. Needs the extra `sklearn`."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxae import _checks
from jaxae._checks import ArgumentError
from jaxae.autoencoder import Autoencoder
from jaxae.data import View
from jaxae.objective import Objective
from jaxae.training import TrainConfig, TrainState, checks, trainer
from jaxae.training.run import PreparedRun, RunState, warnings_of

try:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise _checks.extra("jaxae.sklearn", "scikit-learn", "sklearn") from error

__all__ = ["AutoencoderTransformer"]


class AutoencoderTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """An autoencoder: `transform` encodes rows, `inverse_transform` decodes latents.

    z = g(W_enc x + b_enc), x_hat = o(W_dec^T z + b_dec), fitted by `jaxae.train`.

    X is an array `[N, D]`, a data frame or a sparse matrix, and y is ignored. Numbers
    are converted to float32, in which the model computes; `transform` and
    `inverse_transform` return float32. The rows of a sparse matrix are made dense block
    by block, never all at once. Two fits with the same integer `random_state` are
    bit-equal on one machine.

    Args:
      latent_dim: H, the number of latents.
      activation: g, one of `jaxae.activations` or its name, such as "topk(8)".
      observation: p(x | x_hat), one of `jaxae.observations` or its name. "bernoulli"
        is for data in [0, 1].
      max_iter: the number of passes over the data.
      random_state: seeds the initial weights, the order of the rows and the noise: an
        int, a `numpy.random.RandomState`, or None for NumPy's global state.
      tied: whether the decoder is the encoder transposed.
      pre_bias: whether b_dec is subtracted from the input of the encoder.
      penalties: a dict from a penalty of `jaxae.penalties`, or its name, to its
        coefficient, such as {"l1": 0.1}.
      corruption: noise on the inputs, one of `jaxae.corruptions` or its name. Its level
        is hparams["corruption_rate"].
      learning_rate: the optimizer's step size; None for an optimizer that has none.
      optimizer: as in `jaxae.TrainConfig`.
      hparams: a dict of further hyperparameters that the penalties, the corruption, the
        activation or the optimizer read.
      batch_size: examples a step, at most the number of rows. The last partial batch of
        an epoch is dropped.
      patience: training stops after this many epochs without a smaller training loss;
        None never stops early.
      on_epoch: a callback or a list of callbacks, as in `jaxae.train`. Each call of fit
        and partial_fit counts its own steps.
      verbose: whether to print the loss of each epoch.

    Attributes:
      autoencoder_: the `jaxae.Autoencoder`, for use on one example.
      params_: its parameters, as NumPy arrays.
      history_: a NumPy array by metric, one entry an epoch, such as "train/loss".
      n_iter_: the number of epochs.
      n_features_in_: D, the number of columns of X.
      feature_names_in_: the names of the columns of X, if they are all strings.
      state_: the `jaxae.training.TrainState` from which `partial_fit` continues, as
        NumPy arrays; its key is (), since each call has a key of its own.
    """

    autoencoder_: Autoencoder
    params_: Any
    history_: dict[str, np.ndarray]
    n_iter_: int
    state_: TrainState

    def __init__(
        self,
        latent_dim=64,
        activation="relu",
        observation="gaussian",
        max_iter=20,
        random_state=0,
        *,
        tied=True,
        pre_bias=False,
        penalties=None,
        corruption=None,
        learning_rate=1e-3,
        optimizer="adam",
        hparams=None,
        batch_size=128,
        patience=None,
        on_epoch=None,
        verbose=False,
    ):
        self.latent_dim = latent_dim
        self.activation = activation
        self.observation = observation
        self.max_iter = max_iter
        self.random_state = random_state
        self.tied = tied
        self.pre_bias = pre_bias
        self.penalties = penalties
        self.corruption = corruption
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.hparams = hparams
        self.batch_size = batch_size
        self.patience = patience
        self.on_epoch = on_epoch
        self.verbose = verbose

    # ---- training --------------------------------------------------------------------

    def fit(self, X, y=None, **unsupported) -> "AutoencoderTransformer":
        """Train for `max_iter` epochs, from new weights.

        Raises:
          ValueError: for bad data, an invalid parameter, or `sample_weight`.
        """
        _refuse(unsupported)
        num_epochs = _checks.positive_int("max_iter", self.max_iter)
        return self._train(X, num_epochs, before=None)

    def partial_fit(self, X, y=None, **unsupported) -> "AutoencoderTransformer":
        """Train for one epoch, from the weights and the optimizer's state so far.

        Raises:
          ValueError: as `fit`, and if the parameters now describe another model.
        """
        _refuse(unsupported)
        return self._train(X, num_epochs=1, before=getattr(self, "state_", None))

    def _train(
        self, X, num_epochs: int, before: TrainState | None
    ) -> "AutoencoderTransformer":
        is_first = before is None
        X = self._validated(X, reset=is_first)
        with _own_names():
            prepared = self._prepare(X, num_epochs, before)
            start = trainer.start(prepared, None)
            if before is not None:
                start = _continued(start, before)
            run = trainer.execute(prepared, start)
        for sentence in warnings_of(prepared, run):
            warnings.warn(sentence, RuntimeWarning, stacklevel=3)
        earlier = {} if is_first else self.history_
        self.history_ = {
            name: np.concatenate([earlier.get(name, []), values])
            for name, values in run.metrics.items()
        }
        self.n_iter_ = len(self.history_["train/loss"])
        assert run.model is not None
        self.autoencoder_, params = run.model
        no_key: Any = ()
        self.params_ = jax.device_get(params)
        self.state_ = jax.device_get(run.state._replace(key=no_key))
        return self

    def _prepare(self, X, num_epochs: int, before: TrainState | None) -> PreparedRun:
        ae = Autoencoder(
            input_dim=X.shape[1],
            latent_dim=self.latent_dim,
            activation=self.activation,
            observation=self.observation,
            tied=self.tied,
            pre_bias=self.pre_bias,
        )
        if before is not None:
            _check_same_model(ae, before.params)
        penalties = _as_dict("penalties", self.penalties)
        objective = Objective(
            ae, corruption=self.corruption, penalties=tuple(penalties)
        )
        names = (penalty.name for penalty in objective.penalties)
        hparams = dict(zip(names, penalties.values(), strict=True))
        if self.learning_rate is not None:
            hparams["learning_rate"] = self.learning_rate
        return trainer.prepare(
            objective,
            _as_rows(X),
            hparams=_merged(hparams, _as_dict("hparams", self.hparams)),
            key=self._key(num_epochs_before=0 if before is None else self.n_iter_),
            config=TrainConfig(
                num_epochs=num_epochs,
                batch_size=min(
                    _checks.positive_int("batch_size", self.batch_size), X.shape[0]
                ),
                optimizer=self.optimizer,
                diagnostics=False,
                monitor="train/loss",
                patience=self.patience,
            ),
            params=None if before is None else before.params,
            on_epoch=self._callbacks(num_epochs),
        )

    def _key(self, num_epochs_before: int) -> Array:
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        # Each call of partial_fit has its own order of the rows.
        return jax.random.fold_in(jax.random.key(seed), num_epochs_before)

    def _callbacks(self, num_epochs: int) -> list[Callable]:
        callbacks = list(checks.as_callbacks(self.on_epoch))
        if self.verbose:
            epochs = itertools.count(1)

            def show(metrics, state):
                loss = metrics["train/loss"]
                print(f"epoch {next(epochs)} of {num_epochs}: train/loss {loss:.6g}")

            callbacks.append(show)
        return callbacks

    # ---- the trained model -----------------------------------------------------------

    def transform(self, X) -> Float[np.ndarray, "N H"]:
        """The latents of the rows of X, `[N, D] -> [N, H]`."""
        check_is_fitted(self)
        return self._by_block(Autoencoder.encode, self._validated(X))

    def inverse_transform(self, X) -> Float[np.ndarray, "N D"]:
        """The reconstructions from latents, `[N, H] -> [N, D]`."""
        check_is_fitted(self)
        Z = check_array(X, accept_sparse="csr", dtype=np.float32, input_name="X")
        if Z.shape[1] != (latent_dim := self.autoencoder_.latent_dim):
            problem = f"must have a column for each of {latent_dim} latents"
            raise ArgumentError("X", problem, f"shape {list(Z.shape)}")
        return self._by_block(Autoencoder.decode, Z)

    def score(self, X, y=None) -> float:
        """Minus the mean reconstruction loss of the rows of X; greater is better.

        This is the mean of log p(x | x_hat) without the terms that do not depend on the
        model, so scores of different observations cannot be compared.

        Raises:
          ValueError: if the observation has no such data, as in `fit`.
        """
        check_is_fitted(self)
        X, ae = self._validated(X), self.autoencoder_
        checks.check_rows("X", _as_rows(X), ae.output_dim, ae.observation.validate)
        losses = self._by_block(Autoencoder.loss, X)
        return -float(np.mean(losses, dtype=np.float64))

    def _by_block(self, method: Callable, X) -> np.ndarray:
        """A method of the model, of each row of a dense or sparse matrix."""
        params = jax.tree.map(jnp.asarray, self.params_)
        results = []
        for start in range(0, X.shape[0], _BLOCK_ROWS):
            block = _dense(X[start : start + _BLOCK_ROWS])
            # To a power of 2, so that few programs serve all numbers of rows.
            num_padding = (1 << (len(block) - 1).bit_length()) - len(block)
            padded = np.pad(block, ((0, num_padding), (0, 0)))
            values = _of_rows(params, padded, ae=self.autoencoder_, method=method)
            results.append(np.asarray(values)[: len(block)])
        return np.concatenate(results)

    # ---- what scikit-learn asks ------------------------------------------------------

    def _validated(self, X, reset: bool = False) -> Any:
        """X in float32: an array, or a sparse matrix of rows."""
        return validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype=np.float32
        )

    @property
    def _n_features_out(self) -> int:
        return self.autoencoder_.latent_dim

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


# ---- rows ----------------------------------------------------------------------------

_BLOCK_ROWS = 4096


@functools.partial(jax.jit, static_argnames=("ae", "method"))
def _of_rows(params, rows, *, ae: Autoencoder, method: Callable):
    return jax.vmap(functools.partial(method, ae), in_axes=(None, 0))(params, rows)


def _as_rows(X) -> Any:
    """The rows of a dense or sparse matrix, which are read by blocks."""
    return X if isinstance(X, np.ndarray) else View(X)


def _dense(rows) -> np.ndarray:
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


# ---- arguments -----------------------------------------------------------------------

# What the library calls the estimator's parameters.
_NAMES = {
    "data": "X",
    "hparams['learning_rate']": "learning_rate",
    "config.optimizer": "optimizer",
}


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """Raise errors of the library with the names that the estimator has."""
    try:
        yield
    except ArgumentError as error:
        raise ValueError(error.render(_NAMES)) from error


def _refuse(unsupported: dict[str, Any]) -> None:
    if unsupported.pop("sample_weight", None) is not None:
        raise ArgumentError(
            "sample_weight",
            "is not supported, because the loss is the mean over the rows of a batch",
            advice="leave it out, or repeat rows of X",
        )
    if unsupported:
        raise TypeError(f"fit takes X alone, but got {', '.join(unsupported)} too.")


def _as_dict(name: str, value: Any) -> Mapping:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        example = "{'l1': 0.1}"
        raise ArgumentError(
            name, f"must be a dict such as {example}, or None", _checks.describe(value)
        )
    return value


def _merged(own: dict[str, Any], further: Mapping) -> dict[str, Any]:
    """All hyperparameters; one that has a parameter of its own is not in `hparams`."""
    repeated = [name for name in further if name in own]
    if repeated:
        raise ArgumentError(
            "hparams",
            f"repeats {_checks.argument_list(repeated)}",
            advice="give each number once",
        )
    return own | dict(further)


def _check_same_model(ae: Autoencoder, params: Any) -> None:
    try:
        ae.check_params(params)
    except ArgumentError as error:
        raise ArgumentError(
            "partial_fit",
            "cannot continue, because the parameters now describe another model",
            advice="call fit, or restore the parameters",
        ) from error


def _continued(start: RunState, before: TrainState) -> RunState:
    """The start of a run with the state of the optimizer and the objective so far."""
    # Training donates its state, and may not write into our arrays.
    opt_state, state = jax.tree.map(
        lambda leaf: jnp.array(leaf, copy=True), (before.opt_state, before.state)
    )
    new = start.state._replace(opt_state=opt_state, state=state)
    structures: Any = jax.tree.structure(new), jax.tree.structure(start.state)
    if structures[0] != structures[1]:
        raise ArgumentError(
            "partial_fit",
            "cannot continue, because the optimizer or a part of the objective was "
            "changed",
            advice="call fit, or restore the parameters",
        )
    return start._replace(state=new)
