"""Where each lane lies: chunks are trained at once, blocks of chunks kept at once."""

import math
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Lanes in chunks `[C, S, M]`: S seeds at once, and M lanes of each.

    Lanes that share a seed share batches and noise, which are made once for the M of
    them. Where lanes do not fill a chunk, one of them is there again.

    Attributes:
      slots: `[C, S, M]`, the lane in each place.
      is_first: `[C, S, M]`, False where the lane is there again.
      seed_of: `[C, S]`, which of the seeds.
      seeds: `[U]`, every seed once.
    """

    slots: np.ndarray
    is_first: np.ndarray
    seed_of: np.ndarray
    seeds: np.ndarray

    @property
    def lanes_at_once(self) -> int:
        """S M, the lanes of a chunk."""
        return math.prod(self.slots.shape[1:])

    def blocks(self, num_chunks: int) -> list["Layout"]:
        """Blocks of so many chunks each, the last one filled up."""
        return [
            Layout(
                _filled(self.slots[i : i + num_chunks], num_chunks),
                _filled(self.is_first[i : i + num_chunks], num_chunks, again=False),
                _filled(self.seed_of[i : i + num_chunks], num_chunks),
                self.seeds,
            )
            for i in range(0, len(self.slots), num_chunks)
        ]

    def lanes(self) -> np.ndarray:
        """The lanes that are here, each once, in the order of their places."""
        return self.slots[self.is_first]

    def places(self) -> list[tuple[int, ...]]:
        """Where each of these lies."""
        return [tuple(place) for place in np.argwhere(self.is_first).tolist()]


def layout(
    seeds: np.ndarray,
    lanes_at_once: int,
    num_devices: int = 1,
    mixes_seeds: bool = True,
) -> Layout:
    """Chunks of about so many lanes, as even as they come.

    Args:
      seeds: `[L]`, of each lane.
      lanes_at_once: at most so many lanes in a chunk.
      num_devices: chunks are filled up to a multiple of this.
      mixes_seeds: whether a chunk may have lanes of several seeds.
    """
    unique, seed_of_lane = np.unique(seeds, return_inverse=True)
    groups = [np.flatnonzero(seed_of_lane == u) for u in range(len(unique))]
    most = max(map(len, groups))
    per_seed = math.ceil(most / math.ceil(most / lanes_at_once))
    rows = [
        (u, lanes[i : i + per_seed])
        for u, lanes in enumerate(groups)
        for i in range(0, len(lanes), per_seed)
    ]
    at_once = max(1, min(len(rows), lanes_at_once // per_seed)) if mixes_seeds else 1
    at_once = math.ceil(len(rows) / math.ceil(len(rows) / at_once))
    num_chunks = _multiple(math.ceil(len(rows) / at_once), num_devices)
    slots = np.stack([_filled(lanes, per_seed) for _, lanes in rows])
    is_first = np.stack(
        [_filled(np.ones(len(lanes), bool), per_seed, again=False) for _, lanes in rows]
    )
    num_rows = num_chunks * at_once
    shape = num_chunks, at_once
    return Layout(
        slots=_filled(slots, num_rows).reshape(*shape, per_seed),
        is_first=_filled(is_first, num_rows, again=False).reshape(*shape, per_seed),
        seed_of=_filled(np.array([u for u, _ in rows]), num_rows).reshape(shape),
        seeds=unique,
    )


def _multiple(number: int, of: int) -> int:
    return math.ceil(number / of) * of


def _filled(array: np.ndarray, length: int, again: bool = True) -> np.ndarray:
    """Up to that length: with its last entry again, or with False."""
    missing = length - len(array)
    last = array[-1:] if again else np.zeros_like(array[-1:])
    return np.concatenate([array, *[last] * missing])
