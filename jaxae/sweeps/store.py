"""The lanes of a sweep on disk, from which an interrupted sweep resumes."""

import contextlib
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxae._checks import ArgumentError
from jaxae._files import expanded, write_atomically
from jaxae.autoencoder.files import LANES_FILE, add_checksum, verify_checksum
from jaxae.checkpoints import differences, locked
from jaxae.sweeps.plans import GroupPlan
from jaxae.sweeps.results import LaneBlock
from jaxae.sweeps.spaces import Lanes
from jaxae.training.checkpointing import fingerprint
from jaxae.training.checks import as_hparams

_DAMAGES = (ValueError, KeyError, TypeError, OSError, safetensors.SafetensorError)


def fingerprint_of(
    objective, config, hparams, key, params, data, validation, lanes, halving
):
    """JSON values that are equal for two sweeps with the same results."""
    hparams = as_hparams(hparams, jnp.float32)  # 1 and 1.0 are the same
    single = fingerprint(objective, config, hparams, key, params, data, validation)
    changes = {
        "num_epochs": config.num_epochs,
        "halving": None if halving is None else repr(halving),
        "space": _space(lanes),
    }
    return json.loads(json.dumps({**single, **changes}))


def _space(lanes: Lanes) -> dict[str, Any]:
    def summary(column: np.ndarray):
        distinct = list(dict.fromkeys(column.tolist()))
        text = json.dumps(distinct)
        return distinct if len(text) < 200 else f"{len(distinct)} values, {_hash(text)}"

    axes = {**lanes.axes, **lanes.hparams}  # a hyperparameter of 1 is that of 1.0
    columns = json.dumps([column.tolist() for column in axes.values()])
    values = {name: summary(column) for name, column in axes.items()}
    # Two spaces with the same values may still combine them differently.
    return {**values, "lanes": f"{len(lanes)}, {_hash(columns)}"}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The folder of one sweep.

    `sweep.json` has its fingerprint and its plan; `lanes/` has a file for each block of
    lanes.
    """

    def __init__(self, directory: Path, fingerprint: dict):
        self.fingerprint, self._directory = fingerprint, expanded(directory)

    def locked(self) -> contextlib.AbstractContextManager:
        """Make the folder, and lock it while the sweep runs."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return locked(self._directory)

    def plans(self) -> list[GroupPlan] | None:
        """The plans of the groups, saved in this folder; None if it is new.

        If the folder holds another sweep, the error names the field that differs.
        """
        path = self._directory / LANES_FILE
        if not path.exists():
            return None
        try:
            saved = json.loads(path.read_text())
            fingerprint = saved["identity"]
            saved_epochs = int(fingerprint["num_epochs"])
            num_epochs = self.fingerprint["num_epochs"]
            plans = [_as_plan(fields) for fields in saved["groups"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(
                str(path),
                f"is damaged ({error})",
                advice="restore it, choose another folder, or remove this one",
            ) from None
        if saved_epochs < num_epochs:  # a resumed sweep may have more epochs
            fingerprint = {**fingerprint, "num_epochs": num_epochs}
        for name, there, here in differences(fingerprint, self.fingerprint):
            raise ArgumentError(
                f"out {self._directory}",
                f"holds another sweep: {{{name}}} is {there} there and {here} here",
                advice="sweep the same, or choose another folder",
            )
        return plans

    def begin(self, plans: list[GroupPlan]) -> None:
        """Write the fingerprint, and the plans unless some are saved."""
        content = {
            "identity": self.fingerprint,
            "groups": [plan._asdict() for plan in self.plans() or plans],
        }
        (self._directory / "lanes").mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2).encode()
        write_atomically(self._directory / LANES_FILE, text)

    def write(self, rung: int, group: int, block: LaneBlock) -> None:
        """Write a block of lanes of a rung; an earlier file of them is replaced."""
        leaves = map(np.ascontiguousarray, jax.tree.leaves(block))
        tensors = {str(i): leaf for i, leaf in enumerate(leaves)}
        header = {"metrics": list(block.metrics), "final": list(block.final)}
        metadata = {"jaxae": add_checksum(header, tensors)}
        content = safetensors.numpy.save(tensors, metadata)
        lanes = block.indices.tolist()
        # By all lanes: another layout may have other lanes between the same two.
        name = f"{rung}-{group}-{min(lanes)}-{max(lanes)}-{_hash(str(lanes))[:16]}"
        write_atomically(self._directory / "lanes" / f"{name}.safetensors", content)

    def read(self, rung: int, group: int, params, state, carry) -> list[LaneBlock]:
        """The saved blocks of a group's rung, those with the most steps last.

        A lane is in several files if blocks were laid out anew; its last block counts.
        A damaged file is skipped with a warning. `params`, `state` and `carry` have the
        structure of those of a block.
        """
        blocks = []
        for path in sorted((self._directory / "lanes").glob(f"{rung}-{group}-*")):
            try:
                blocks.append(_read(path, params, state, carry))
            except _DAMAGES as error:
                message = f"{path} is damaged ({error}); its lanes are trained again."
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        return sorted(blocks, key=lambda block: block.step)


def _as_plan(fields: dict[str, Any]) -> GroupPlan:
    timings = tuple(map(tuple, fields["timings"]))
    return GroupPlan(**{**fields, "timings": timings})


def _read(path: Path, params, state, carry) -> LaneBlock:
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads((file.metadata() or {}).get("jaxae", "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header = verify_checksum(header, tensors)
    metrics, final = (dict.fromkeys(header[name], 0) for name in ("metrics", "final"))
    example: Any = (0, params, state, carry, 0, 0, 0, metrics, final)
    structure = jax.tree.structure(LaneBlock(*example))
    leaves = [tensors[str(i)] for i in range(len(tensors))]
    block: Any = jax.tree.unflatten(structure, leaves)
    return block._replace(step=block.step.item(), num_epochs=block.num_epochs.item())
