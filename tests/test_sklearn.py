"""The scikit-learn estimator: scikit-learn's own checks, and what jaxae promises."""

import importlib
import pickle
import sys

import jax
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import jaxae
from jaxae.sklearn import AutoencoderTransformer
from jaxae.training import trainer

D = 6


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(X):
    return small().fit(X)


def small(**parameters):
    """An estimator that is fitted in no time; every test has the same program."""
    return AutoencoderTransformer(
        **{"latent_dim": 4, "max_iter": 2, "batch_size": 10, **parameters}
    )


def assert_bit_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


# scikit-learn's casts of a column of objects, and its tests with numbers that overflow.
@pytest.mark.filterwarnings("ignore::RuntimeWarning:sklearn.*")
@parametrize_with_checks([small()])
def test_check_of_scikit_learn_passes(estimator, check):
    check(estimator)


# ---- training ------------------------------------------------------------------------


def key_of(seed, num_epochs_before=0):
    seed = np.random.RandomState(seed).randint(2**31 - 1)
    return jax.random.fold_in(jax.random.key(seed), num_epochs_before)


def test_fit_is_train(X, fitted):
    ae = jaxae.Autoencoder(
        input_dim=D, latent_dim=4, activation="relu", observation="gaussian"
    )
    run = jaxae.train(
        jaxae.Objective(ae),
        X,
        hparams={"learning_rate": 1e-3},
        key=key_of(0),
        config=jaxae.TrainConfig(num_epochs=2, batch_size=10, diagnostics=False),
    )
    assert fitted.autoencoder_ == ae
    assert_bit_equal(fitted.params_, run.params)
    assert_bit_equal(fitted.history_, run.metrics)
    assert fitted.n_iter_ == 2


def test_partial_fit_continues_with_the_state_of_the_optimizer(X):
    """Three epochs of one step each are three steps of one Adam."""
    estimator = small(batch_size=len(X), learning_rate=0.1)
    for _ in range(3):
        estimator.partial_fit(X)
    objective = jaxae.Objective(estimator.autoencoder_)
    init_key, _ = jax.random.split(key_of(0))
    optimizer = optax.adam(0.1)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: objective(p, X, None, {})[0])(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = objective.ae.init(init_key)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    # The order of the rows changes the last bits of a sum over them, and Adam divides
    # by the size of the gradient.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        estimator.params_,
        params,
    )
    assert estimator.n_iter_ == len(estimator.history_["train/loss"]) == 3


def test_partial_fit_draws_an_order_of_its_own(X):
    """Stochastic gradient descent has no state, so it is a run from the weights."""
    estimator = small(max_iter=1, optimizer="sgd").fit(X)
    run = jaxae.train(
        jaxae.Objective(estimator.autoencoder_),
        X,
        hparams={"learning_rate": 1e-3},
        key=key_of(0, num_epochs_before=1),
        params=estimator.params_,
        config=jaxae.TrainConfig(
            num_epochs=1, batch_size=10, optimizer="sgd", diagnostics=False
        ),
    )
    assert_bit_equal(estimator.partial_fit(X).params_, run.params)


def test_fits_with_one_seed_are_bit_equal(X, fitted):
    again = clone(fitted).fit(X)
    assert_bit_equal(again.params_, fitted.params_)
    assert_bit_equal(fitted.fit(X).params_, again.params_)
    other = small(random_state=1).fit(X)
    assert not np.array_equal(other.params_.W, fitted.params_.W)


def test_a_random_state_is_drawn_from_at_each_fit(X):
    estimator = small(random_state=np.random.RandomState(0))
    first = estimator.fit(X).params_
    assert_bit_equal(first, small(random_state=0).fit(X).params_)
    assert not np.array_equal(first.W, estimator.fit(X).params_.W)
    np.random.seed(0)
    assert_bit_equal(small(random_state=None).fit(X).params_, first)


def test_another_fit_compiles_nothing(X, fitted):
    """Also with other numbers, which are traced."""
    before = trainer._run_steps._cache_size()
    small(max_iter=3, learning_rate=1e-2, random_state=3).fit(X)
    assert trainer._run_steps._cache_size() == before


def test_parts_and_penalties_reach_the_objective(X):
    estimator = small(
        activation=jaxae.activations.sigmoid,
        penalties={"kl_sparsity": 0.1, jaxae.penalties.weight_decay: 0.01},
        corruption="masking",
        hparams={"kl_sparsity_target": 0.2, "corruption_rate": 0.3},
        tied=False,
        pre_bias=True,
    ).fit(X)
    ae = estimator.autoencoder_
    assert (ae.activation.name, ae.tied, ae.pre_bias) == ("sigmoid", False, True)
    last = {name: values[-1] for name, values in estimator.history_.items()}
    parts = (
        last["train/reconstruction"]
        + 0.1 * last["train/kl_sparsity"]
        + 0.01 * last["train/weight_decay"]
    )
    # Means over five steps in float32.
    np.testing.assert_allclose(last["train/loss"], parts, rtol=1e-5)


def test_an_activation_of_the_batch_becomes_one_of_an_example(X):
    estimator = small(activation="batch_topk(2)").fit(X).partial_fit(X)
    assert estimator.autoencoder_.activation.name.startswith("jumprelu")
    Z = estimator.transform(X)
    np.testing.assert_array_equal(Z[:7], estimator.transform(X[:7]))


def test_training_stops_by_patience_or_a_callback(X):
    assert small(max_iter=9, patience=1, learning_rate=1e-12).fit(X).n_iter_ < 9
    seen = []
    stop = small(on_epoch=lambda metrics, state: seen.append(metrics) or True).fit(X)
    assert stop.n_iter_ == len(seen) == 1


def test_verbose_prints_the_loss_of_each_epoch(X, capsys):
    estimator = small(verbose=True).fit(X)
    first, second = capsys.readouterr().out.splitlines()
    loss = estimator.history_["train/loss"][1]
    assert first.startswith("epoch 1 of 2: train/loss ")
    assert second == f"epoch 2 of 2: train/loss {loss:.6g}"


def test_divergence_is_a_warning_and_leaves_a_finite_model(X):
    with pytest.warns(RuntimeWarning, match="training stopped at step"):
        estimator = small(learning_rate=1e30).fit(X)
    assert np.isfinite(estimator.transform(X)).all()


# ---- the trained model ---------------------------------------------------------------


@given(
    num_rows=st.integers(1, 21),
    block_rows=st.sampled_from([1, 4, 64]),
    as_input=st.sampled_from(
        [np.asarray, np.asfortranarray, scipy.sparse.csr_array, scipy.sparse.coo_matrix]
    ),
)
@settings(max_examples=20, deadline=None)
def test_rows_are_transformed_in_blocks(fitted, X, num_rows, block_rows, as_input):
    """The oracle is the model in NumPy: tied weights, relu, half the squared error."""
    params, rows = fitted.params_, X[:num_rows]
    Z = np.maximum(rows @ params.W.T + params.b_enc, 0)
    X_hat = Z @ params.W + params.b_dec
    losses = 0.5 * np.sum((X_hat - rows) ** 2, axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxae.sklearn, "_BLOCK_ROWS", block_rows)
        # Two programs sum in different orders, in float32.
        close = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(fitted.transform(as_input(rows)), Z, **close)
        x_hat = fitted.inverse_transform(as_input(Z))
        np.testing.assert_allclose(x_hat, X_hat, **close)
        score = fitted.score(as_input(rows))
        np.testing.assert_allclose(score, -np.mean(losses), **close)


@pytest.mark.parametrize("format", ["csr_array", "csc_array", "coo_matrix"])
def test_a_sparse_matrix_gives_the_fit_of_the_dense_one(X, fitted, format):
    estimator = small().fit(getattr(scipy.sparse, format)(X))
    assert_bit_equal(estimator.params_, fitted.params_)


def test_a_sparse_matrix_is_never_dense_as_a_whole(X, fitted, monkeypatch):
    dense, lengths = scipy.sparse.csr_array.toarray, []

    def toarray(matrix, *arguments, **settings):
        lengths.append(matrix.shape[0])
        return dense(matrix, *arguments, **settings)

    monkeypatch.setattr(scipy.sparse.csr_array, "toarray", toarray)
    monkeypatch.setattr(jaxae.sklearn, "_BLOCK_ROWS", 16)
    fitted.transform(scipy.sparse.csr_array(X))
    assert lengths == [16, 16, 16, 2]


def test_frames_keep_the_names_of_their_columns(X):
    frame = pd.DataFrame(X, columns=list("abcdef"))
    estimator = small().set_output(transform="pandas").fit(frame)
    assert list(estimator.feature_names_in_) == list("abcdef")
    latents = estimator.transform(frame)
    names = [f"autoencodertransformer{i}" for i in range(4)]
    assert list(latents.columns) == list(estimator.get_feature_names_out()) == names
    assert (latents.index == frame.index).all()
    np.testing.assert_array_equal(latents, small().fit(X).transform(X))
    # scikit-learn reads a frame of another library, such as polars, as an array.
    np.testing.assert_array_equal(small().fit(Table(X)).transform(Table(X)), latents)


class Table:
    """The array protocol alone."""

    def __init__(self, X):
        self._X, self.shape = X, X.shape

    def __len__(self):
        return len(self._X)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._X, dtype)


def test_float64_is_converted_and_float32_returned(X, fitted):
    estimator = small().fit(X.astype(np.float64))
    assert_bit_equal(estimator.params_, fitted.params_)
    with jax.enable_x64(True):
        again = small().fit(X)
        assert again.transform(X).dtype == np.float32
    # Another program, with some scalars in float64.
    np.testing.assert_allclose(again.params_.W, fitted.params_.W, rtol=1e-4, atol=1e-5)


def test_pickle_holds_arrays_of_numpy_alone(X, fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))
    leaves = jax.tree.leaves([again.params_, again.state_, again.history_])
    assert {type(leaf) for leaf in leaves} == {np.ndarray}
    assert_bit_equal(
        again.partial_fit(X).params_, clone(fitted).fit(X).partial_fit(X).params_
    )


def test_the_model_is_saved_as_any_other(X, fitted, tmp_path):
    jaxae.save(tmp_path / "model", fitted.autoencoder_, fitted.params_)
    ae, params = jaxae.load(tmp_path / "model")
    assert ae == fitted.autoencoder_
    assert_bit_equal(params, fitted.params_)


def test_a_grid_is_searched_in_a_pipeline(X):
    grid = {"autoencodertransformer__learning_rate": [1e-9, 1e-2]}
    search = GridSearchCV(make_pipeline(StandardScaler(), small()), grid, cv=2).fit(X)
    assert search.best_params_ == {"autoencodertransformer__learning_rate": 1e-2}
    assert search.transform(X).shape == (50, 4)


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"latent_dim": 0}, "latent_dim must be an integer of at least 1, got 0."),
        ({"max_iter": 1.5}, "max_iter must be an integer of at least 1, got 1.5."),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0."),
        ({"activation": "topk(9)"}, "activation topk(9) needs at least 9 latents"),
        ({"observation": "bernoulli"}, "X must be in [0, 1] for bernoulli"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"learning_rate": None}, "hparams lacks learning_rate"),
        ({"penalties": "l1"}, "penalties must be a dict such as {'l1': 0.1}"),
        ({"penalties": {"l2": 1}}, "penalty must be one of"),
        ({"penalties": {"l1": -1}}, "hparams['l1'] must be at least 0"),
        ({"hparams": {"learning_rate": 1}}, "hparams repeats learning_rate; give"),
        ({"hparams": {"k": 1}}, "hparams has k, which nothing reads"),
        ({"corruption": "masking"}, "hparams lacks corruption_rate"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of adam"),
        ({"tied": "no"}, "tied must be True or False, got 'no'."),
        ({"patience": 0}, "patience must be an integer of at least 1"),
        ({"on_epoch": 3}, "on_epoch must be a function, got 3."),
        ({"random_state": "a"}, "'a' cannot be used to seed"),
    ],
    ids=str,
)
def test_bad_parameter_is_named(X, parameters, words):
    with pytest.raises(ValueError) as caught:
        small(**parameters).fit(X)
    assert words in str(caught.value)


def test_sample_weight_is_refused(X):
    for method in ("fit", "partial_fit", "fit_transform"):
        with pytest.raises(ValueError, match="^sample_weight is not supported, becau"):
            getattr(small(), method)(X, sample_weight=np.ones(len(X)))
    with pytest.raises(TypeError, match="fit takes X alone, but got groups too."):
        small().fit(X, groups=1)
    small(max_iter=1).fit(X, sample_weight=None)


def test_what_does_not_fit_the_model_is_refused(X, fitted):
    with pytest.raises(ValueError, match="X has 3 features, but"):
        fitted.transform(X[:, :3])
    with pytest.raises(ValueError, match="^X must have a column for each of 4 latents"):
        fitted.inverse_transform(X)
    for method in ("transform", "inverse_transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(small(), method)(X)


@pytest.mark.parametrize("as_input", [np.asarray, scipy.sparse.csr_matrix])
def test_score_refuses_data_that_the_observation_does_not_have(X, as_input):
    inside = 1 / (1 + np.exp(-X))
    estimator = small(observation="bernoulli").fit(inside)
    outside = inside.copy()
    outside[3, 2] = 3
    words = r"^X must be in \[0, 1\] for bernoulli, found 3.0 at row 3, column 2"
    for method in ("fit", "partial_fit", "score"):
        with pytest.raises(ValueError, match=words):
            getattr(clone(estimator).fit(inside), method)(as_input(outside))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "sgd"}, "partial_fit cannot continue, because the optimizer"),
        ({"latent_dim": 3}, "describe another model; call fit"),
    ],
    ids=str,
)
def test_partial_fit_of_another_model_is_refused(X, fitted, change, words):
    estimator = clone(fitted).fit(X).set_params(**change)
    before = estimator.params_
    with pytest.raises(ValueError, match=words):
        estimator.partial_fit(X)
    assert estimator.params_ is before


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxae.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxae\[sklearn\]'"):
        importlib.import_module("jaxae.sklearn")
