"""The records of a case, and the catalogue to which cases are added."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Size(NamedTuple):
    """The size of a case; a case with other dimensions uses the one that fits."""

    D: int  # inputs
    H: int  # latents
    B: int  # examples

    def __str__(self) -> str:
        """The size as text, such as "784x500"."""
        return f"{self.D}x{self.H}"


class Function(NamedTuple):
    """A scalar function of a pytree, and the points at which it is differentiated."""

    inputs: Callable[..., tuple]  # (rng, size) -> (params, *args), NumPy or JAX arrays
    loss: Callable[..., Any]  # (params, *args) -> []
    surrogate: tuple[str, ...] = ()  # leaves that follow autodiff by design


class Case(NamedTuple):
    """A claimed gradient of a function: right, or wrong in known leaves."""

    name: str
    kind: str  # "bug" or "right"
    cause: str  # of the bug, or of the difficulty
    source: str  # of a published bug; otherwise empty
    function: Function
    claim: Callable[..., Any]  # (params, *args) -> gradient
    wrong: tuple[str, ...]  # paths of the wrong leaves
    untraceable: bool = False  # whether the claim branches in Python on values

    @property
    def grad(self) -> Callable[..., Any]:
        """The claim, compiled if it can be traced."""
        return self.claim if self.untraceable else jax.jit(self.claim)


class Catalogue(dict):
    """Cases by name; the decorators `bug` and `right` add a claim."""

    def bug(
        self, function: Function, name: str, cause: str, *, wrong: str, source: str = ""
    ) -> Callable[..., Any]:
        """Add a claim that is wrong in the leaves listed in `wrong`."""
        return self._add(
            name, "bug", cause, source, function, wrong=tuple(wrong.split())
        )

    def right(
        self, function: Function, name: str, cause: str, *, untraceable: bool = False
    ) -> Callable[..., Any]:
        """Add a claim that is right but difficult to check."""
        return self._add(
            name, "right", cause, "", function, wrong=(), untraceable=untraceable
        )

    def _add(
        self,
        name: str,
        kind: str,
        cause: str,
        source: str,
        function: Function,
        *,
        wrong: tuple[str, ...],
        untraceable: bool = False,
    ) -> Callable[..., Any]:
        if name in self:
            raise ValueError(f"there are two cases named {name!r}.")

        def decorate(claim: Callable[..., Any]) -> Callable[..., Any]:
            self[name] = Case(
                name, kind, cause, source, function, claim, wrong, untraceable
            )
            return claim

        return decorate


def f32(x: Any) -> np.ndarray:
    """An array in float32, the dtype of the cases."""
    return np.asarray(x, np.float32)
