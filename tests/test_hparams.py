"""Bad hyperparameters, sources and folders are rejected by every function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import batch

import jaxae
from jaxae import optimizers
from jaxae.training import trainer

KEY, X = jax.random.key(0), np.asarray(batch())
AE = jaxae.Autoencoder(input_dim=6, latent_dim=4)
SCHEDULED = {"schedule_steps": 5, "final_fraction": 0.1}
RATE = {"learning_rate": 0.1}


def built(*arguments, **keywords):
    return {"optimizer": optimizers.build(*arguments, **keywords)}


def work(monkeypatch, name, hparams, *, data=X, objective=None, **config):
    """`train`, and `sweep` with that number in the space and beside it."""
    monkeypatch.setattr(trainer, "execute", lambda *_: pytest.fail("worked"))
    objective = jaxae.Objective(AE) if objective is None else objective
    arguments = {
        "key": KEY,
        "config": jaxae.TrainConfig(**{"num_epochs": 1, "batch_size": 8, **config}),
    }
    yield lambda: jaxae.train(objective, data, hparams=hparams, **arguments)
    seeds = {"seed": [0]}
    yield lambda: jaxae.sweep(objective, data, seeds, hparams=hparams, **arguments)
    if name is not None:
        others = {n: v for n, v in hparams.items() if n != name}
        space = {name: [0.5, hparams[name]]}  # only one of whose lanes is bad
        yield lambda: jaxae.sweep(objective, data, space, hparams=others, **arguments)


def assert_raises(calls, sentence):
    for call in calls:
        with pytest.raises(ValueError, match=sentence) as error:
            call()
        assert "\n" not in str(error.value)


# ---- optimizers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, hparams, name, words",
    [
        ({}, {}, "learning_rate", "at least 0, got -1.0; a negative learning rate"),
        ({}, {}, "init_scale", "positive, got -1.0"),
        (built("momentum"), {}, "momentum", "at least 0 and below 1, got -1.0"),
        (built("adamw", clip=True), {"max_norm": 1}, "adamw_decay", "at least 0, got"),
        (built("adam", clip=True), {}, "max_norm", "positive, got -1.0"),
        (built("adam", warmup=True), {}, "warmup_steps", "at least 0, got -1.0"),
        (
            built("adam", schedule="linear"),
            {"final_fraction": 0.1},
            "schedule_steps",
            "at least 0, got -1.0",
        ),
        (
            built("adam", schedule="cosine"),
            {"schedule_steps": 5},
            "final_fraction",
            "between 0 and 1, got -1.0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_of_an_optimizer_have_ranges(config, hparams, name, words, monkeypatch):
    hparams = {**RATE, **hparams, name: -1.0}
    sentence = rf"hparams\['{name}'\] must be {words}"
    assert_raises(work(monkeypatch, name, hparams, **config), sentence)


@pytest.mark.parametrize(
    "optimizer, name, value",
    [
        (optimizers.momentum, "momentum", 1.5),
        (optimizers.momentum, "momentum", 1.0),
        (optimizers.build("sgd", schedule="exponential"), "final_fraction", 0.0),
        (optimizers.build("sgd", schedule="linear"), "final_fraction", 1.5),
        (optimizers.build("sgd", clip=True), "max_norm", 0.0),
    ],
)
def test_the_ends_of_the_ranges_that_are_open(optimizer, name, value):
    numbers = {**RATE, **SCHEDULED, name: value}
    with pytest.raises(ValueError, match=rf"{name}'\] must be .*, got {value}"):
        optimizers.check_hparams(optimizer, numbers)


def test_the_ends_of_the_ranges_that_are_closed():
    for optimizer, numbers in [
        (optimizers.momentum, {"momentum": 0.0}),
        (optimizers.adamw, {"adamw_decay": 0.0}),
        (optimizers.build("sgd", schedule="linear"), {"final_fraction": 0.0}),
        (optimizers.build("sgd", schedule="exponential"), {"final_fraction": 1.0}),
        (optimizers.build("sgd", warmup=True), {"warmup_steps": 0}),
    ]:
        optimizers.check_hparams(optimizer, {"learning_rate": 0.0, **numbers})


def test_the_error_shows_the_number_as_given():
    """Not with the digits that float32 has in float64."""
    for value in (-0.1, np.float32(-0.1), jnp.float32(-0.1)):
        with pytest.raises(ValueError, match=r"at least 0, got -0\.1;"):
            optimizers.check_hparams(optimizers.adam, {"learning_rate": value})


def test_a_custom_optimizer_may_have_ranges():
    class Own:
        def __call__(self, hparams):
            return optimizers.sgd(hparams)

        def check_hparams(self, hparams):
            raise ValueError("raised by its own method")

    with pytest.raises(ValueError, match="its own method"):
        optimizers.check_hparams(optimizers.build(Own(), clip=True), RATE)


# ---- objectives ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts, hparams, name, words",
    [
        ({"penalties": ("l1",)}, {}, "l1", "at least 0, got -1.0; below .* no minimum"),
        ({"penalties": ("contractive",)}, {}, "contractive", "at least 0, got -1.0;"),
        ({"penalties": ("weight_decay",)}, {}, "weight_decay", "at least 0, got -1"),
        (
            {"penalties": ("kl_sparsity",)},
            {"kl_sparsity_target": 0.1},
            "kl_sparsity",
            "at least 0, got -1.0;",
        ),
        (
            {"penalties": ("kl_sparsity",)},
            {"kl_sparsity": 0.1},
            "kl_sparsity_target",
            "above 0 and below 1, got -1.0",
        ),
        (
            {"corruption": "masking"},
            {},
            "corruption_rate",
            "at least 0 and at most 1 for masking, got -1.0",
        ),
        ({"corruption": "gaussian"}, {}, "corruption_rate", "at least 0 for gaussian"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_of_an_objective_have_ranges(parts, hparams, name, words, monkeypatch):
    objective, sentence = jaxae.Objective(AE, **parts), rf"{name}'\] must be {words}"
    hparams = {**hparams, name: -1.0}
    numbers = {**RATE, **hparams}
    assert_raises(work(monkeypatch, name, numbers, objective=objective), sentence)
    params = AE.init(KEY)
    value_and_grad = jaxae.manual.value_and_grad(objective)
    calls = [lambda: objective(params, X, KEY, hparams)]
    # A number that the program closes over is seen, an array too.
    seen = {name: jnp.float32(value) for name, value in hparams.items()}
    calls += [lambda: jax.eval_shape(lambda p: objective(p, X, KEY, seen), params)]
    calls += [lambda: value_and_grad(params, X, KEY, hparams)]
    if name != "corruption_rate":
        calls += [lambda: objective.evaluate(params, X, hparams)]
    assert_raises(calls, sentence)
    # What is traced is not: a program is one for all numbers.
    traced = jax.eval_shape(objective, params, X, KEY, hparams)
    assert traced[0].shape == ()


# ---- not numbers ---------------------------------------------------------------------

NOT_NUMBERS = {
    "bytes": b"0.1",
    "text": "0.1",
    "array of text": np.array("0.1"),
    "array of bytes": np.array(b"0.1"),
    "bool": True,
    "array of bool": np.array(True),
    "array of JAX's bool": jnp.array(True),
    "complex": 0.1 + 0j,
    "none": None,
    "several": [0.1, 0.2],
    "matrix": np.ones((2, 2)),
    "key": KEY,
}


@pytest.mark.parametrize("value", NOT_NUMBERS.values(), ids=NOT_NUMBERS.keys())
def test_a_hyperparameter_must_be_a_number(value, monkeypatch):
    hparams = {"learning_rate": value}
    sentence = r"hparams\['learning_rate'\] must be a finite number, got "
    assert_raises(work(monkeypatch, None, hparams), sentence)
    objective = jaxae.Objective(AE, penalties=("l1",))
    with pytest.raises(ValueError, match=r"hparams\['l1'\] must be a finite number"):
        objective(AE.init(KEY), X, None, {"l1": value})


@pytest.mark.parametrize("value", [np.float64(0.1), np.array(0.1), jnp.float32(0.1)])
def test_arrays_of_one_number_are_numbers(value):
    objective = jaxae.Objective(AE)
    arguments = {"key": KEY, "config": jaxae.TrainConfig(batch_size=8)}
    prepared = trainer.prepare(
        objective, X, hparams={"learning_rate": value}, **arguments
    )
    assert prepared.hparams["learning_rate"] == np.float32(0.1)


@pytest.mark.parametrize("hparams", [{1: 0.1}, {("learning_rate",): 0.1}])
def test_names_must_be_text(hparams, monkeypatch):
    sentence = "hparams must have strings as keys, such as 'learning_rate', got "
    assert_raises(work(monkeypatch, None, hparams), sentence)
    with pytest.raises(ValueError, match=sentence):
        jaxae.Objective(AE, penalties=("l1",))(AE.init(KEY), X, None, hparams)


# ---- sources -------------------------------------------------------------------------


def text(key, hparams):
    return "rows"


def narrow(key, hparams):
    return jnp.ones((8, 5))


def integers(key, hparams):
    return jnp.ones((8, 6), int)


def three(key, hparams):
    return (jnp.ones((8, 6)),) * 3


def of_a_number(key, hparams):
    return jnp.ones((int(hparams["rows"]), 6))


def of_a_shape(key, hparams):
    return jnp.ones((hparams["rows"], 6))


def raising(key, hparams):
    raise KeyError("no rows")


@pytest.mark.parametrize(
    "source, words",
    [
        (text, "batch must hold numbers, got 'rows'"),
        (narrow, r"batch must have shape \[B, 6\], got \[8, 5\]"),
        (integers, "batch has dtype int"),
        (three, "got a tuple of 3"),
        (of_a_number, "Abstract tracer value encountered where concrete"),
        (of_a_shape, "Shapes must be 1D sequences of concrete values"),
        (raising, "KeyError: 'no rows'"),
    ],
)
def test_a_bad_source_is_rejected(source, words, monkeypatch):
    hparams = {**RATE, **({"rows": 8} if source.__name__.startswith("of_") else {})}
    calls = work(monkeypatch, None, hparams, data=source, steps_per_epoch=2)
    assert_raises(calls, rf"data must be an array, .*; {source.__name__} fail.*{words}")


# ---- folders -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [3, b"x", "", np.ones((2, 2))], ids=repr)
def test_a_folder_must_be_a_path(name):
    arguments = {"hparams": RATE, "key": KEY}
    objective, params = jaxae.Objective(AE), AE.init(KEY)
    sentence = "must be a folder's path, such as 'runs/a', got "
    for argument, call in {
        "checkpoint_dir": lambda: jaxae.train(
            objective, X, checkpoint_dir=name, **arguments
        ),
        "out": lambda: jaxae.sweep(objective, X, {"seed": [0]}, out=name, **arguments),
        "directory": lambda: jaxae.save(name, AE, params),
        "directory ": lambda: jaxae.load(name),
    }.items():
        assert_raises([call], f"{argument.strip()} {sentence}")
