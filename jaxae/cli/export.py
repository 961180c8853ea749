"""`jaxae export`: the latents of a run in the files of other programs."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

import jaxae
from jaxae import _checks
from jaxae._files import expanded
from jaxae.cli.options import CommandError, ExportOptions
from jaxae.cli.trained_model import load_trained
from jaxae.dashboards import Source, Unembedding, write_neuronpedia, write_saedashboard
from jaxae.tokens import Tokens

FORMATS = {"neuronpedia": write_neuronpedia, "saedashboard": write_saedashboard}


def export(options: ExportOptions) -> int:
    """`jaxae export RUN --to neuronpedia --source source.toml --tokens FILE -o DIR`."""
    write = _checks.lookup("--to", FORMATS, options.to)
    source = _read_source(expanded(options.source))
    tokens = jaxae.tokens.load(options.tokens, options.vocabulary)
    with load_trained(options.run) as model:
        if options.data is None:
            X = model.load_splits().all_rows
        else:
            X = model.load_rows(options)
        folder = write(
            options.output,
            source,
            model.ae,
            model.params,
            X,
            tokens,
            unembedding=_read_unembedding(options, tokens),
            context=options.context,
            vectors=options.vectors,
        )
    print(f"wrote {folder}")
    return 0


def _read_source(path: Path) -> Source:
    if not path.is_file():
        raise FileNotFoundError(
            f"--source {path} does not exist; give a .toml file of what the dashboards "
            "are called."
        )
    with _checks.reading(path, "give a .toml file of what the dashboards are called"):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    fields = {field.name: field for field in dataclasses.fields(Source)}
    for name, value in content.items():
        if type(value) is not _checks.lookup(f"{path}: name", fields, name).type:
            raise CommandError(f"{path}: {name} must not be {value!r}.")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in content:
            raise CommandError(f"{path} must give {name}.")
    return Source(**content)


def _read_unembedding(options: ExportOptions, tokens: Tokens) -> Any:
    if options.unembedding is None:
        return None
    if tokens.vocabulary is None:
        raise CommandError(
            "--unembedding needs --vocabulary, the text of each of its columns."
        )
    path = expanded(options.unembedding)
    if not path.is_file():
        raise FileNotFoundError(f"--unembedding {path} does not exist.")
    with _checks.reading(path, "store an array [D, V] by np.save"):
        weights = np.lib.format.open_memmap(path, mode="r")  # never unpickles
        if weights.dtype.kind != "f":
            raise ValueError(f"its dtype is {weights.dtype}")
    return Unembedding(weights, tokens.vocabulary)
