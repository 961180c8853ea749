"""What a case is, and how one is written down."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Size(NamedTuple):
    """How large: a case whose vectors are not of these takes the one that fits it."""

    D: int  # inputs
    H: int  # latents
    B: int  # examples

    def __str__(self) -> str:
        """As in "784x500"."""
        return f"{self.D}x{self.H}"


class Function(NamedTuple):
    """A scalar function of a pytree, and where it is differentiated."""

    inputs: Callable[..., tuple]  # (rng, size) -> (params, *args), NumPy or JAX arrays
    loss: Callable[..., Any]  # (params, *args) -> []
    surrogate: tuple[str, ...] = ()  # leaves whose gradient is autodiff's by design


class Case(NamedTuple):
    """A gradient that is claimed for a function: right, or wrong in known leaves."""

    name: str
    kind: str  # "bug" or "right"
    cause: str  # of the bug, or of the difficulty
    source: str  # where it was published, if it was
    function: Function
    claim: Callable[..., Any]  # (params, *args) -> gradient
    wrong: tuple[str, ...]  # paths of the leaves that are wrong; none if right
    untraceable: bool = False  # looks at values, so that it must run as it is

    @property
    def grad(self) -> Callable[..., Any]:
        """The claim, compiled where that is possible."""
        return self.claim if self.untraceable else jax.jit(self.claim)


class Catalogue(dict):
    """Cases by name; `bug` and `right` decorate the claim that they add."""

    def bug(
        self, function: Function, name: str, cause: str, *, wrong: str, source: str = ""
    ) -> Callable[..., Any]:
        """A claim that is wrong in the leaves that `wrong` lists."""
        return self._add(name, "bug", cause, source, function, tuple(wrong.split()))

    def right(
        self, function: Function, name: str, cause: str, *, untraceable: bool = False
    ) -> Callable[..., Any]:
        """A claim that is right although it is easily taken for wrong."""
        return self._add(name, "right", cause, "", function, (), untraceable)

    def _add(self, name: str, *fields: Any) -> Callable[..., Any]:
        kind, cause, source, function, *rest = fields
        if name in self:
            raise ValueError(f"there are two cases named {name!r}.")

        def decorate(claim: Callable[..., Any]) -> Callable[..., Any]:
            self[name] = Case(name, kind, cause, source, function, claim, *rest)
            return claim

        return decorate


def f32(x: Any) -> np.ndarray:
    """Single precision, as users have it."""
    return np.asarray(x, np.float32)
