"""Files of other libraries: recognition, the hub, jaxae's own folder as a format."""

import jax
import numpy as np
import pytest

import jaxae
from jaxae import formats

AE = jaxae.Autoencoder(
    input_dim=3, latent_dim=4, activation="relu", observation="gaussian", tied=False
)


def params_of(ae, seed=0):
    """Random parameters of a model, its biases and what its activation learns too."""
    params = ae.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    random = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, random)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


@pytest.fixture
def folder(tmp_path):
    """A model folder of jaxae."""
    jaxae.save(tmp_path / "model", AE, params_of(AE), run={"why": "a test"})
    return tmp_path / "model"


def test_a_folder_of_jaxae_is_a_format_too(folder, tmp_path):
    ae, params = formats.load(folder)
    assert ae == AE
    assert_same_bits(params, params_of(AE))
    assert formats.metadata(folder) == {"why": "a test"}
    copy = tmp_path / "copy"
    formats.save(copy, ae, params, format="jaxae", metadata=formats.metadata(folder))
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
