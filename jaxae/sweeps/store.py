"""Lanes on disk, as far as they have come: what a killed sweep goes on from."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxae._files import expanded, write_atomically
from jaxae.autoencoder.files import LANES_FILE, add_checksum, verify_checksum
from jaxae.checkpoints import differences, locked
from jaxae.sweeps.plans import Schedule
from jaxae.sweeps.spaces import Lanes
from jaxae.training.fingerprint import fingerprint

_Broken = safetensors.SafetensorError


class LaneBlock(NamedTuple):
    """Lanes of one group as far as they have come, all to the same step.

    Attributes:
      indices: `[n]`, their places in the group.
      params: their parameters, `[n, ...]`.
      rest: what else training goes on from, `[n, ...]`.
      step: steps that they have begun.
      num_epochs: epochs that have ended.
      stopped_at: `[n]`.
      rows: their metrics in the last of these epochs, `[n, epochs]` by name.
      final: what was looked at at their end, `[n]` by name.
    """

    indices: np.ndarray
    params: Any
    rest: Any
    step: int
    num_epochs: int
    stopped_at: np.ndarray
    rows: dict[str, np.ndarray]
    final: dict[str, np.ndarray]

    @property
    def num_rows(self) -> int:
        """The number of epochs that `rows` has."""
        return next((values.shape[1] for values in self.rows.values()), 0)


def fingerprint_of(objective, config, hparams, key, data, validation, lanes, halving):
    """JSON values that two sweeps share if their tables are to be the same."""
    single = fingerprint(objective, config, hparams, key, None, data, validation)
    return json.loads(
        json.dumps(
            {
                **single,
                "num_epochs": config.num_epochs,
                "halving": None if halving is None else repr(halving),
                "space": _space(lanes),
            }
        )
    )


def _space(lanes: Lanes) -> dict[str, Any]:
    def words(column: np.ndarray):
        distinct = list(dict.fromkeys(column.tolist()))
        text = json.dumps(distinct)
        return distinct if len(text) < 200 else f"{len(distinct)} values, {_hash(text)}"

    every = json.dumps([column.tolist() for column in lanes.axes.values()])
    values = {name: words(column) for name, column in lanes.axes.items()}
    # What two spaces of the same values may still differ in: how these go together.
    return {**values, "lanes": f"{len(lanes)}, {_hash(every)}"}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """A folder of one sweep: what it is, how it is run, and its lanes so far.

    `sweep.json` says the first two; `lanes/` holds a file for each block of lanes.
    """

    def __init__(self, directory: Path, fingerprint: dict):
        self._directory, self._identity = directory, fingerprint

    def schedules(self) -> list[Schedule] | None:
        """How this sweep was begun; None if it was not.

        Raises:
          ValueError: if another sweep was, naming the field, or the file is damaged.
        """
        path = self._directory / LANES_FILE
        if not path.exists():
            return None
        try:
            saved = json.loads(path.read_text())
            fingerprint, asked = saved["identity"], self._identity["num_epochs"]
            num_epochs = int(fingerprint["num_epochs"])
            schedules = [
                Schedule(**{**s, "tried": tuple(map(tuple, s["tried"]))})
                for s in saved["schedules"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); restore it, choose another folder, or "
                "remove this one."
            ) from None
        if num_epochs < asked:  # the lanes go on
            fingerprint = {**fingerprint, "num_epochs": asked}
        for name, found, wanted in differences(fingerprint, self._identity):
            raise ValueError(
                f"out {self._directory} holds another sweep: {name} is {found} there "
                f"and {wanted} here; sweep the same, or choose another folder."
            )
        return schedules

    def begin(self, schedules: list[Schedule]) -> None:
        """Write down what this sweep is, and how it is run.

        Raises:
          OSError: if the folder cannot be written.
        """
        kept = {
            "identity": self._identity,
            "schedules": [s._asdict() for s in schedules],
        }
        (self._directory / "lanes").mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept, indent=2).encode()
        write_atomically(self._directory / LANES_FILE, text)

    def put(self, rung: int, group: int, part: LaneBlock) -> None:
        """Keep lanes as far as they have come in a rung, in place of what they were.

        Raises:
          OSError: if the folder cannot be written.
        """
        tensors = {
            "indices": part.indices,
            "reached": np.array([part.step, part.num_epochs]),
            "stopped_at": part.stopped_at,
            **_numbered("params", part.params),
            **_numbered("rest", part.rest),
            **{f"rows/{name}": values for name, values in part.rows.items()},
            **{f"final/{name}": values for name, values in part.final.items()},
        }
        tensors = {name: np.ascontiguousarray(v) for name, v in tensors.items()}
        # The names in their order, so that a table is the same when read back.
        kind: dict[str, Any] = {"rung": rung, "group": group}
        kind |= {"rows": list(part.rows), "final": list(part.final)}
        content = safetensors.numpy.save(
            tensors, {"jaxae": add_checksum(kind, tensors)}
        )
        name = f"{rung}-{group}-{min(part.indices)}-{max(part.indices)}.safetensors"
        write_atomically(self._directory / "lanes" / name, content)

    def parts(self, rung: int, group: int, params, rest) -> list[LaneBlock]:
        """What is kept of a group's rung; a damaged file is told of, and passed over.

        Lanes that are in several files, since blocks were made anew, are the furthest
        in the last of these.

        Args:
          rung, group: their numbers.
          params, rest: of the structure that is expected.
        """
        return sorted(
            self._parts(rung, group, params, rest), key=lambda part: part.step
        )

    def _parts(self, rung: int, group: int, params, rest) -> Iterator[LaneBlock]:
        for path in sorted((self._directory / "lanes").glob(f"{rung}-{group}-*")):
            try:
                yield _read(path, params, rest)
            except (
                ValueError,
                KeyError,
                TypeError,
                OSError,
                safetensors.SafetensorError,
            ) as error:
                warnings.warn(
                    f"{path} is damaged ({error}); its lanes are trained again.",
                    RuntimeWarning,
                    stacklevel=2,
                )


@contextlib.contextmanager
def opened(out, fingerprint: dict) -> Iterator[Store | None]:
    """The folder, held while a sweep runs; None without one.

    Raises:
      ValueError: if another process holds it.
      OSError: if it cannot be made.
    """
    if out is None:
        yield None
        return
    directory = expanded(out)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        yield Store(directory, fingerprint)


def _numbered(prefix: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return {f"{prefix}/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _read(path: Path, params, rest) -> LaneBlock:
    with safetensors.safe_open(path, framework="numpy") as file:
        kind = json.loads((file.metadata() or {}).get("jaxae", "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    kind = verify_checksum(kind, tensors)

    def tree(prefix, like):
        leaves = range(jax.tree.structure(like).num_leaves)
        found = [tensors[f"{prefix}/{i}"] for i in leaves]
        return jax.tree.unflatten(jax.tree.structure(like), found)

    def named(part):
        return {name: tensors[f"{part}/{name}"] for name in kind[part]}

    return LaneBlock(
        indices=tensors["indices"],
        params=tree("params", params),
        rest=tree("rest", rest),
        step=int(tensors["reached"][0]),
        num_epochs=int(tensors["reached"][1]),
        stopped_at=tensors["stopped_at"],
        rows=named("rows"),
        final=named("final"),
    )
