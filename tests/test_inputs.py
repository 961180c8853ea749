"""Unusual inputs to every function that takes data: converted, or one clear error."""

import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

import jaxae
from jaxae import data
from jaxae.cli import data_splits
from jaxae.cli.options import TrainOptions
from jaxae.observations._base import check_values
from jaxae.training import trainer

pytestmark = pytest.mark.usefixtures("no_step_norms")

X = np.random.default_rng(0).uniform(size=(300, 4)).astype(np.float32)
AE = jaxae.Autoencoder(input_dim=4, latent_dim=3)
OBJECTIVE = jaxae.Objective(AE)
ARGUMENTS = {"hparams": {"learning_rate": 1e-2}, "key": jax.random.key(0)}


class Tensor:
    """The methods of a torch tensor that convert it, and its errors."""

    def __init__(self, values, dtype="torch.float32", requires_grad=False):
        self.values, self.dtype, self.requires_grad = values, dtype, requires_grad
        self.shape = values.shape

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        return Tensor(self.values[rows], self.dtype, self.requires_grad)

    def detach(self):
        return Tensor(self.values, self.dtype)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values.astype(np.float32), requires_grad=self.requires_grad)

    def numpy(self):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.dtype != "torch.float32":
            raise TypeError(f"Got unsupported ScalarType {self.dtype}\nand more.")
        return self.values

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


# Each with the array to which it is converted.
ACCEPTED = {
    "frame": (pd.DataFrame(X), X),
    "frame of named columns": (pd.DataFrame(X, columns=list("abcd")), X),
    "frame of shuffled labels": (
        pd.DataFrame(X, index=np.arange(300)[::-1], columns=[3, 1, 0, 2]),
        X,
    ),
    "frame of two dtypes": (
        pd.DataFrame(X).astype({0: "f8"}),
        X.astype("f8"),
    ),
    "polars": (pl.DataFrame(X, schema=list("abcd")), X),
    "arrow": (pa.table(dict(zip("abcd", X.T, strict=True))), X),
    "tensor that requires a gradient": (Tensor(X, requires_grad=True), X),
    "bfloat16 tensor": (
        Tensor(X.astype(jnp.bfloat16), "torch.bfloat16", requires_grad=True),
        X.astype(jnp.bfloat16).astype(np.float32),
    ),
    "JAX array": (jnp.asarray(X), X),
    "list of tensors": ([Tensor(x, requires_grad=True) for x in X], X),
}

# Each with a pattern of the error.
REJECTED = {
    "masked": (np.ma.array(X, mask=X > 0.9), r"masked array.*X\.filled\(value\)"),
    "masked nowhere": (np.ma.array(X), "masked array"),
    "list of masked rows": (list(np.ma.array(X, mask=X > 0.9)), "masked array"),
    "sparse": (scipy.sparse.csr_matrix(X), r"sparse csr_matrix; give X\.toarray\(\)"),
    "sparse array": (scipy.sparse.coo_array(X), "sparse coo_array"),
    "frame with text": (
        pd.DataFrame({"a": X[:, 0], "city": ["x"] * 300}),
        "column 'city' is (str|object); drop it, or convert it",
    ),
    "frame with gaps": (
        pd.DataFrame({"a": X[:, 0], 7: pd.array([None] * 300, dtype="Float64")}),
        "column 7 is Float64",
    ),
    "frame of nullable columns": (
        pd.DataFrame(X).astype("Float64"),
        r"column 0 is Float64; drop it, or convert it, frame\.astype\('float32'\)",
    ),
    "frame with flags": (
        pd.DataFrame({"a": X[:, 0], "flag": X[:, 1] > 0.5}),
        "column 'flag' is bool; .*astype",
    ),
    "frame of dates": (
        pd.DataFrame({"day": pd.to_datetime(["2020-01-01"] * 300)}),
        "column 'day' is datetime64",
    ),
    "polars frame with text": (
        pl.DataFrame({"a": X[:, 0], "city": ["x"] * 300}),
        "column 'city' is String",
    ),
    "sparse tensor": (Tensor(X, "torch.sparse"), "Got unsupported ScalarType"),
    "path": (
        "X.npy",
        r"got 'X\.npy'; read a file with jaxae\.data\.load\(path\)\.train",
    ),
    "Path": (Path("X.npy"), r"jaxae\.data\.load\(path\)\.train"),
    "list of paths": (["X.npy", "Y.npy"], r"jaxae\.data\.load\(path\)\.train"),
    "objects": (X.astype(object), "object"),
    "complex": (X.astype(complex), "complex"),
    "fields": (X.view([(name, "f4") for name in "abcd"]), r"\('a', '<f4'\)"),
    "bfloat16 as NumPy stores it": (X.astype(jnp.bfloat16).view("V2"), r"\|V2"),
    "tokens": (X.reshape(30, 10, 4), ""),
    "images": (X.reshape(25, 4, 4, 3), ""),
    "column": (X[:, 0], ""),
    "0-d": (np.array(1.0, np.float32), ""),
    "number": (1.0, ""),
    "no rows": (X[:0], ""),
    "no columns": (X[:, :0], ""),
    "None": (None, ""),
    "dict": ({"a": X[:, 0]}, ""),
}


def prepare_training(rows, validation=None):
    """The data of `train` after its checks, before it trains."""
    job = trainer.prepare(OBJECTIVE, rows, validation=validation, **ARGUMENTS)
    return job.data, job.validation


def prepare_sweep(rows):
    """The data of `sweep` after its checks, before it trains."""
    space = {"seed": [0, 1]}
    (run,) = jaxae.sweeps.prepare(OBJECTIVE, rows, space, **ARGUMENTS).trainers
    return run.data, run.validation


def options(path):
    return TrainOptions(data=str(path))


def load_file(array):
    """The data of the command line, from a file of the array."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npy")
        np.save(path, array)
        return data_splits.load(options(path), jaxae.observations.bernoulli)


SCALING = data.fit_scaling("standardize", data.column_stats(X))
PARAMS = AE.init(jax.random.key(0))
# Every function that takes data, and the argument that its errors name.
FUNCTIONS = {
    "train": (prepare_training, "data"),
    "inputs": (lambda rows: prepare_training((rows, X)), "data"),
    "targets": (lambda rows: prepare_training((X, rows)), "data"),
    "validation": (lambda rows: prepare_training(X, rows), "validation"),
    "sweep": (prepare_sweep, "data"),
    "column_stats": (data.column_stats, "data"),
    "fit_scaling": (lambda rows: data.fit_scaling("unit", rows), "data"),
    "View": (lambda rows: data.View(rows)[:], "rows"),
    "apply": (SCALING.apply, "X"),
    "take": (lambda rows: data.take(rows, [2, 0, 2]), "data|index"),
    "split": (lambda rows: data.split(rows, 0.2, 0.1, seed=1), "X|rows"),
    "evaluate": (lambda rows: OBJECTIVE.evaluate(PARAMS, rows, {}), "batch"),
    "file": (load_file, "data"),
}
# Rows of any dtype are selected, and arrays of any number of axes are scaled.
SELECTABLE = {"objects", "complex", "fields", "bfloat16 as NumPy stores it"}
SELECTABLE |= {"no columns", "tokens", "images", "column"}
EXCEPTIONS = {
    "take": SELECTABLE,
    "split": SELECTABLE,
    "apply": {"tokens", "no rows"},
    "View": {"no rows", "no columns", "sparse", "sparse array"},
    "validation": {"None"},
    "file": {
        "tokens",
        "bfloat16 as NumPy stores it",
        *(n for n, (X, _) in REJECTED.items() if type(X) is not np.ndarray),
    },
}


def leaves_of(result):
    """The numbers and hashes in the result of a function."""
    leaves = map(np.asarray, jax.tree.leaves(result))
    return [leaf for leaf in leaves if leaf.dtype.kind in "biufU"]


@pytest.mark.parametrize("function", sorted(FUNCTIONS.keys() - {"file"}))
def test_frames_and_tensors_give_the_results_of_their_arrays(function):
    call, _ = FUNCTIONS[function]
    for name, (value, array) in ACCEPTED.items():
        expected = leaves_of(call(array))
        for leaf, other in zip(leaves_of(call(value)), expected, strict=True):
            np.testing.assert_array_equal(leaf, other, err_msg=name)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_everything_else_is_rejected_in_one_sentence(function):
    call, argument = FUNCTIONS[function]
    for name in REJECTED.keys() - EXCEPTIONS.get(function, set()):
        value, message = REJECTED[name]
        with pytest.raises(ValueError) as e:
            call(value)
        sentence = str(e.value)
        assert "\n" not in sentence and sentence.endswith("."), (name, sentence)
        assert re.search(rf"\b({argument})\b", sentence), (name, sentence)
        assert function == "evaluate" or re.search(message, sentence), (name, sentence)


def test_training_on_a_frame_is_training_on_its_array():
    """A regression test with a frame of many rows, whose columns were read as rows."""
    rows = np.random.default_rng(1).uniform(size=(1000, 4)).astype(np.float32)
    frame = pd.DataFrame(rows, index=np.arange(1000)[::-1])
    config = jaxae.TrainConfig(num_epochs=1, batch_size=64)
    frames, arrays = (
        jaxae.train(OBJECTIVE, value, validation=value, config=config, **ARGUMENTS)
        for value in (frame, rows)
    )
    assert frames.metrics == arrays.metrics
    # Columns are attributes of a frame, which must not make it look like a tensor.
    frame.columns = ["dtype", "toarray", "detach", "shape"]
    index = np.array([1, 5])  # frame[index] would select columns
    np.testing.assert_array_equal(data.take(frame, index), rows[index])
    for leaf, other in zip(frames.params[:3], arrays.params[:3], strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_a_saved_run_is_the_same_whether_it_is_given_a_frame_or_its_array():
    frames, arrays = (
        trainer.prepare(
            OBJECTIVE, given, validation=given, **ARGUMENTS, has_checkpoints=True
        )
        for given in (pd.DataFrame(X), X)
    )
    assert frames.fingerprint == arrays.fingerprint


def test_rows_that_are_masked_arrays_are_rejected_when_they_are_read():
    """netCDF4 gives masked arrays."""

    class Variable:
        def __len__(self):
            return len(X)

        def __getitem__(self, rows):
            return np.ma.array(X[rows])

    for name, read in (("data", data.column_stats), ("rows", data.View)):
        with pytest.raises(ValueError, match=f"^{name} must not be a masked array"):
            read(Variable())


def test_masked_numbers_are_rejected_by_every_function():
    masked = np.ma.array(0.1, mask=True)
    rate = {"learning_rate": masked}
    calls = {
        r"hparams\['learning_rate'\]": lambda: jaxae.train(
            OBJECTIVE, X, hparams=rate, key=jax.random.key(0)
        ),
        r"space\['learning_rate'\]": lambda: jaxae.sweep(
            OBJECTIVE,
            X,
            {"learning_rate": np.ma.array([0.1, 0.2], mask=[0, 1])},
            key=jax.random.key(0),
        ),
        "params.b_dec": lambda: jaxae.train(
            OBJECTIVE,
            X,
            params=PARAMS._replace(b_dec=np.ma.array(np.zeros(4, np.float32))),
            **ARGUMENTS,
        ),
        "x": lambda: AE.encode(PARAMS, np.ma.array(X[0])),
        "x_hat": lambda: jaxae.metrics.fvu(X, np.ma.array(X)),
        "data_mean": lambda: AE.init(jax.random.key(0), data_mean=np.ma.array(X[0])),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name} must not be a masked array"):
            call()


# Integers.


def validate_counts(X):
    check_values((X >= 0) & (X == np.round(X)), X, "must be counts")


COUNTS = jaxae.observations.from_log_prob(
    lambda x, mu: x * jnp.log(mu) - mu, mean=jnp.exp, validate=validate_counts
)
RNG = np.random.default_rng(2)
PIXELS = RNG.integers(0, 256, (300, 4), np.uint8)
AGES = RNG.integers(18, 100, (300, 4))
FLAGS = RNG.integers(0, 2, (300, 4))
DEPTHS = RNG.integers(-50, 3000, (300, 4), np.int16)
FLOAT, GREY = "X.astype('float32')", "X / 255"
STANDARD = "fit_scaling('standardize', View(X)).apply(X)"
UNIT = "fit_scaling('unit', View(X)).apply(X)"
UNITS = "for columns in other units"
ADVICE = {
    ("bernoulli", "pixels"): GREY,
    ("bernoulli", "ages"): UNIT,
    ("bernoulli", "flags"): FLOAT,
    ("bernoulli", "depths"): UNIT,
    ("gaussian", "pixels"): (
        f"{GREY} for grey levels, {FLOAT} for counts, {STANDARD} {UNITS}"
    ),
    ("gaussian", "ages"): f"{FLOAT} for counts, {STANDARD} {UNITS}",
    ("gaussian", "flags"): FLOAT,
    ("gaussian", "depths"): f"{FLOAT} for counts, {STANDARD} {UNITS}",
    ("counts", "pixels"): FLOAT,
    ("counts", "ages"): FLOAT,
    ("counts", "flags"): FLOAT,
}
OBSERVATIONS = {
    "bernoulli": jaxae.observations.bernoulli,
    "gaussian": jaxae.observations.gaussian,
    "counts": COUNTS,
}
INTEGERS = {"pixels": PIXELS, "ages": AGES, "flags": FLAGS, "depths": DEPTHS}


@pytest.mark.parametrize(("observation", "values"), ADVICE)
def test_the_error_for_integers_says_how_to_convert_them(observation, values):
    """The converted values are accepted."""
    likelihood, X = OBSERVATIONS[observation], INTEGERS[values]
    ae = jaxae.Autoencoder(input_dim=4, latent_dim=3, observation=likelihood)
    advice = ADVICE[observation, values]
    sentence = f"data must be real floating point, got {X.dtype}; convert it: {advice}."
    for value in (X, pd.DataFrame(X), jnp.asarray(X), (PIXELS / 255, X)):
        with pytest.raises(ValueError) as e:
            trainer.prepare(jaxae.Objective(ae), value, **ARGUMENTS)
        assert str(e.value).replace("int32", str(X.dtype)) == sentence
    names = {"X": X, "View": data.View, "fit_scaling": data.fit_scaling}
    for conversion in re.split(r", (?=X|fit)", advice):
        likelihood.validate(eval(conversion.split(" for ")[0], names))


def test_the_error_for_integer_rows_suggests_a_view(tmp_path):
    np.save(tmp_path / "X.npy", AGES)
    for rows in (list(AGES), data.load(tmp_path / "X.npy", memory_budget=0).train):
        with pytest.raises(ValueError) as e:
            prepare_training(rows)
        view = "View(X, scaling=fit_scaling('unit', View(X)))"
        assert str(e.value).endswith(f"got int64; convert it: {view}.")
        with pytest.raises(
            ValueError, match=r"View\(X\) for counts, View\(X, scaling="
        ):
            data.column_stats(rows)


# Sparse matrices.


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix", "csc_array", "coo_matrix"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_a_view_gives_dense_rows_of_a_sparse_matrix(kind, dtype):
    dense = (X * (X > 0.8) * 10).astype(dtype)
    view = data.View(getattr(scipy.sparse, kind)(dense), np.array([5, 2, 8]))
    assert view.shape == (3, 4) and view.dtype == np.float32
    np.testing.assert_array_equal(view[:], dense[[5, 2, 8]].astype("f4"))


def test_training_on_a_sparse_matrix_is_training_on_its_dense_array():
    dense = np.where(X > 0.5, X, 0)
    config = jaxae.TrainConfig(num_epochs=1, batch_size=64)
    sparse, arrays = (
        jaxae.train(OBJECTIVE, rows, config=config, **ARGUMENTS)
        for rows in (data.View(scipy.sparse.csr_array(dense)), dense)
    )
    assert sparse.metrics == arrays.metrics


# Files.


def test_files_of_sparse_matrices_are_rejected(tmp_path):
    for name in ("csr", "csc", "coo", "bsr", "dia"):
        path = tmp_path / f"{name}.npz"
        scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(np.eye(4)).asformat(name))
        for array in (None, "data"):
            with pytest.raises(ValueError, match=r"holds a sparse matrix.*toarray\(\)"):
                data.load(path, array=array)


@pytest.mark.parametrize(
    "value", [["X.npy", "Y.npy"], X, pd.DataFrame(X), None, b"X.npy", 3]
)
def test_load_rejects_values_that_are_no_path(value):
    with pytest.raises(ValueError, match="^name_or_path must be one name or path") as e:
        data.load(value)
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


def test_the_command_line_says_that_a_file_is_read_as_images(tmp_path, capsys):
    np.save(tmp_path / "tokens.npy", X.reshape(30, 10, 4))
    data_splits.load(options(tmp_path / "tokens.npy"), jaxae.observations.bernoulli)
    assert capsys.readouterr().err == (
        f"jaxae: note: {tmp_path}/tokens.npy holds [30, 10, 4], and each row is an "
        "image of 10 x 4; if these are tokens [N, T, D], store X.reshape(-1, 4).\n"
    )
    np.save(tmp_path / "rows.npy", X)
    for name in ("digits", tmp_path / "rows.npy"):
        data_splits.load(options(name), jaxae.observations.bernoulli)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "observation", "advice"),
    [
        ("pixels", "bernoulli", "--divide-by 255"),
        ("ages", "bernoulli", "--scaling unit"),
        ("flags", "bernoulli", "--divide-by 1"),
        (
            "ages",
            "gaussian",
            f"--divide-by 1 for counts, --scaling standardize {UNITS}",
        ),
    ],
)
def test_the_command_line_names_the_option_that_converts_integers(
    values, observation, advice, tmp_path
):
    np.save(tmp_path / "X.npy", INTEGERS[values])
    with pytest.raises(ValueError) as e:
        data_splits.load(options(tmp_path / "X.npy"), OBSERVATIONS[observation])
    assert str(e.value) == (
        f"--data {tmp_path}/X.npy holds {INTEGERS[values].dtype}, but training needs "
        f"floats; give {advice}."
    )
