"""Files of other libraries: recognition, the hub, jaxae's own folder as a format."""

import re

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


# ---- model cards ---------------------------------------------------------------------


def front_matter(folder):
    """The lines between the two --- of a model card."""
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return dict(line.split(": ", 1) for line in matter.splitlines()), text


def code_of(text):
    return re.search(r"```python\n(.*)```", text, re.DOTALL)[1]


def test_a_saved_model_has_a_model_card_that_says_how_to_load_it(folder):
    matter, text = front_matter(folder)
    assert matter == {"library_name": "jaxae", "tags": "[autoencoder]"}
    for row in ("`relu`", "untied", "| latents | 4 |", "| parameters | 31 |"):
        assert row in text
    names = {}
    exec(code_of(text).replace("FOLDER", str(folder)), names)
    assert names["ae"] == AE


def test_the_card_of_another_format_names_its_library(tmp_path):
    ae = jaxae.Autoencoder(
        input_dim=3, latent_dim=4, activation="topk(2)", observation="gaussian"
    )
    formats.save(tmp_path, ae, params_of(ae), format="saelens")
    matter, text = front_matter(tmp_path)
    assert matter["library_name"] == "saelens"
    assert matter["tags"] == "[autoencoder, sparse-autoencoder]"
    assert "sae_lens" in code_of(text)


def test_a_card_is_replaced_and_a_readme_of_the_user_is_kept(folder):
    wider = jaxae.Autoencoder(input_dim=3, latent_dim=9)
    jaxae.save(folder, wider, params_of(wider))
    assert "| latents | 9 |" in (folder / "README.md").read_text()
    (folder / "README.md").write_bytes(b"\xff mine")
    jaxae.save(folder, AE, params_of(AE))
    assert (folder / "README.md").read_bytes() == b"\xff mine"
