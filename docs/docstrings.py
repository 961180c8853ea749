"""An extension of griffe: parameters that share one description in a docstring."""

import re

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)


class SharedDescriptions(griffe.Extension):
    """Reads `x, x_hat: [B, D]` as a line for each: griffe knows one name a line."""

    def on_function(self, *, func, **_):
        """Repeat the description under each name."""
        if func.docstring is not None:
            func.docstring.value = SHARED.sub(_one_by_one, func.docstring.value)


def _one_by_one(item):
    indent, names, description = item.groups()
    return "\n".join(f"{indent}{name}: {description}" for name in names.split(", "))
