"""jaxae's own folder: `config.json` and `params.safetensors`."""

import json
from pathlib import Path
from typing import Any

from jaxae.autoencoder import Autoencoder, files
from jaxae.formats._base import Format, Model, has_files


def _read(path: Path, inputs_normalized: bool) -> Model:
    del inputs_normalized  # jaxae's files do not ask for a normalization
    ae, params = files.load(path)
    config = json.loads((path / files.CONFIG_FILE).read_bytes())
    metadata = {n: v for n, v in config.items() if n not in ("jaxae", "model")}
    return Model(ae, params, metadata)


def _write(
    folder: Path, ae: Autoencoder, params: Any, metadata: dict[str, Any]
) -> None:
    files.save(folder, ae, params, run=metadata)


FORMAT = Format(
    "jaxae",
    files=(files.CONFIG_FILE, files.PARAMS_FILE),
    recognizes=has_files(files.CONFIG_FILE, files.PARAMS_FILE),
    read=_read,
    write=_write,
)
