"""The catalogues of the penalties, and the range of their coefficients."""

from collections.abc import Callable

from jaxae import _checks
from jaxae.terms import Penalty

COEFFICIENTS = _checks.AT_LEAST_0._replace(
    reason="below it the objective has no minimum"
)

# By name: penalties, and those of the sparse family, of which some are functions of
# numbers, such as aux_k in "aux_k(512)".
CATALOGUE: dict[str, Penalty] = {}
SPARSE: dict[str, Penalty | Callable[..., Penalty]] = {}


def get(name: str) -> Penalty:
    """The penalty of that name, such as "l1" or "aux_k(512)".

    Raises:
      ValueError: for an unknown name, or a number out of range; the message lists the
        known ones.
    """
    return _checks.get_part("penalty", {**CATALOGUE, **SPARSE}, name)


def find(name: str) -> Penalty | None:
    """The penalty of that name; None for an unknown one.

    Raises:
      ValueError: for a number out of range.
    """
    return _checks.find_part({**CATALOGUE, **SPARSE}, name)
