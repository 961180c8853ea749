import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import FLOAT16
from oracle import G

from jaxae import activations, gradcheck
from jaxae.activations import CATALOGUE

NAMES = list(CATALOGUE)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_slopes_equal_numpy_float64(name, x64):
    g, (value, slope) = CATALOGUE[name], G[name]
    a = jnp.concatenate([jnp.linspace(-30.0, 30.0, 601), jnp.array([0.0, -0.0])])
    z = g.apply(a)
    np.testing.assert_allclose(z, value(np.asarray(a)), rtol=1e-13, atol=1e-300)
    # 1 - z^2 and z (1 - z) cancel where saturated: absolute, as in the lecture's form.
    np.testing.assert_allclose(g.slope(a, z), slope(np.asarray(a)), atol=4e-15)


@pytest.mark.parametrize("name", NAMES)
def test_slope_and_curvature_equal_autodiff_everywhere_and_at_zero(name, x64):
    g = CATALOGUE[name]
    a = jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    first, second = jax.grad(g.apply), jax.grad(jax.grad(g.apply))
    z = g.apply(a)
    np.testing.assert_allclose(g.slope(a, z), jax.vmap(first)(a), atol=1e-15)
    np.testing.assert_allclose(g.curvature(a, z), jax.vmap(second)(a), atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_at_zero_is_a_derivative_or_between_the_one_sided(name, x64):
    g = CATALOGUE[name]
    report = gradcheck.check_jvp(
        g.apply, jnp.array([0.0, 0.5]), jvp=lambda a, da: da * g.slope(a, g.apply(a))
    )
    report.assert_ok()
    [leaf] = report.leaves.values()
    assert leaf.verdict == ("kink" if name == "relu" else "correct")


def test_relu_slope_is_0_at_0_as_in_jax():
    relu = activations.relu
    zero = jnp.zeros(1)
    assert relu.slope(zero, zero) == 0 == jax.grad(jax.nn.relu)(0.0)
    assert jax.grad(lambda a: relu.apply(a).sum())(zero) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [FLOAT16, "bfloat16", "float32"])
def test_extreme_pre_activations_stay_finite_and_keep_their_dtype(name, dtype):
    g = CATALOGUE[name]
    a = jnp.array([-6e4, -1e4, 0, 1e4, 6e4], dtype)
    z = g.apply(a)
    found = (z, g.slope(a, z), g.curvature(a, z), g.vjp(a, z, z))
    assert all(array.dtype == dtype for array in found)
    assert all(jnp.isfinite(array).all() for array in found[:3])


@pytest.mark.parametrize("name", NAMES)
def test_nan_passes_through(name):
    assert jnp.isnan(CATALOGUE[name].apply(jnp.array([jnp.nan]))).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_custom_rule_so_that_autodiff_stays_a_referee(name):
    text = str(jax.make_jaxpr(CATALOGUE[name].apply)(jnp.ones(3)))
    assert "custom_" not in text


@pytest.mark.parametrize("name", NAMES)
def test_pickling_and_copying_keep_the_object(name):
    g = CATALOGUE[name]
    assert pickle.loads(pickle.dumps(g)) is g
    assert copy.deepcopy(g) is g
    assert repr(g) == name and activations.get(name) is g


def _double(a):
    return 2 * a


def _two(a, z):
    return jnp.full_like(a, 2)


def test_an_activation_of_your_own_pickles_by_value():
    own = activations.Activation("own", _double, vjp=_two, slope=_two)
    assert pickle.loads(pickle.dumps(own)) == own
    # One that borrows a known name is not replaced by the known one.
    impostor = own._replace(name="relu")
    assert pickle.loads(pickle.dumps(impostor)) == impostor != activations.relu


def test_unknown_name_lists_the_known_and_guesses():
    with pytest.raises(
        ValueError, match="identity, jumprelu, .*relu.*did you mean 'sigmoid'"
    ):
        activations.get("sigmod")
