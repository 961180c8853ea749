"""Model cards: the `README.md` of a saved model, which the Hugging Face hub shows."""

from pathlib import Path
from typing import Any

import jax

from jaxae._files import write_atomically
from jaxae.autoencoder.model import Autoencoder

CARD_FILE = "README.md"
_MARK = "<!-- Replaced when a model is saved here; remove this line to keep it. -->"


def write_card(
    folder: Path, ae: Autoencoder, params: Any, *, library: str, usage: str
) -> None:
    """Write the card of a model, unless the folder has a README.md of another author.

    Args:
      folder: the folder of the saved model.
      ae, params: the model and its parameters.
      library: the name of the library that loads it, for the hub.
      usage: Python code that loads the folder "FOLDER".
    """
    path = folder / CARD_FILE
    if path.exists() and not (path.is_file() and _MARK.encode() in path.read_bytes()):
        return
    write_atomically(path, _card(ae, params, library, usage).encode())


def _card(ae: Autoencoder, params: Any, library: str, usage: str) -> str:
    leaves = jax.tree.leaves(params)
    rows = {
        "activation": f"`{ae.activation}`",
        "observation": f"`{ae.observation}`",
        "parametrization": _parametrization(ae),
        "inputs": ae.input_dim,
        "latents": ae.latent_dim,
        "outputs": ae.output_dim,
        "parameters": sum(leaf.size for leaf in leaves),
        "dtype": ", ".join(sorted({leaf.dtype.name for leaf in leaves})),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    tags = ["autoencoder", *(["sparse-autoencoder"] if ae.activation.is_sparse else [])]
    return f"""\
---
library_name: {library}
tags: [{", ".join(tags)}]
---
{_MARK}

# Autoencoder of {ae.latent_dim} latents

| | |
|---|---|
{table}

Download this folder, and load it:

```python
{usage}
```
"""


def _parametrization(ae: Autoencoder) -> str:
    choices = {
        "without encoder bias": not ae.bias,
        "with pre-encoder bias": ae.pre_bias,
    }
    return ", ".join([ae.parametrization.name, *(n for n in choices if choices[n])])
