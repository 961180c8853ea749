"""Named sets and your own arrays, of any size: raw, checked, split, scaled.

Nothing is preprocessed, downloaded on import or unpickled. `load` gives raw values and
what divides them, `survey` refuses what cannot be trained on and measures the rest in
one pass, `fit_scaling` turns the measures into a `Scaling`. What does not fit in memory
is `Rows`, read by blocks; a `View` of them is selected and scaled as it is read. What
is endless is a source, `(key, hparams) -> batch`: `sparse_features`, or your own.
"""

from jaxae.data.files import Dataset, PathLike
from jaxae.data.named import NAMES, digits, fashion_mnist, load, mnist
from jaxae.data.rows import Rows, is_rows, take
from jaxae.data.scaling import (
    SCALINGS,
    Scaling,
    divide,
    fit_scaling,
    load_scaling,
    save_scaling,
    scaled,
)
from jaxae.data.surveying import Survey, check_array, survey
from jaxae.data.synthetic import sparse_features
from jaxae.data.views import View, split

__all__ = [
    "NAMES",
    "SCALINGS",
    "Dataset",
    "PathLike",
    "Rows",
    "Scaling",
    "Survey",
    "View",
    "check_array",
    "digits",
    "divide",
    "fashion_mnist",
    "fit_scaling",
    "is_rows",
    "load",
    "load_scaling",
    "mnist",
    "save_scaling",
    "scaled",
    "sparse_features",
    "split",
    "survey",
    "take",
]
