"""Named datasets and your own arrays, of any size: load, check, split and scale.

`load` returns raw values and their scale, `column_stats` checks and measures them in
one pass, and `fit_scaling` fits a `Scaling` to these statistics. Data larger than
memory are `Rows`, read by blocks; a `View` selects and scales rows as they are read.
Synthetic data are a source, `(key, hparams) -> batch`: `sparse_features`, that of a
known dictionary (`dictionaries`), or your own. Nothing is unpickled.
"""

from jaxae.data import dictionaries
from jaxae.data.files import Dataset
from jaxae.data.named import NAMES, digits, fashion_mnist, load, mnist
from jaxae.data.rows import BlockShuffle, Rows, is_rows, take
from jaxae.data.scaling import (
    SCALINGS,
    Scaling,
    divide,
    fit_scaling,
    load_scaling,
    save_scaling,
    scaled,
)
from jaxae.data.statistics import (
    ColumnStats,
    check_array,
    column_stats,
    geometric_median,
)
from jaxae.data.stored import PathLike
from jaxae.data.stored_activations import activations
from jaxae.data.synth_sae_bench import load_synthsaebench, synthsaebench
from jaxae.data.synthetic import sparse_features
from jaxae.data.views import View, split

__all__ = [
    "NAMES",
    "SCALINGS",
    "BlockShuffle",
    "ColumnStats",
    "Dataset",
    "PathLike",
    "Rows",
    "Scaling",
    "View",
    "activations",
    "check_array",
    "column_stats",
    "dictionaries",
    "digits",
    "divide",
    "fashion_mnist",
    "fit_scaling",
    "geometric_median",
    "is_rows",
    "load",
    "load_scaling",
    "load_synthsaebench",
    "mnist",
    "save_scaling",
    "scaled",
    "sparse_features",
    "split",
    "synthsaebench",
    "take",
]
