import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxae import plots

PNG = b"\x89PNG\r\n\x1a\n"
X = np.random.default_rng(0).uniform(size=(20, 24))


def assert_is_the_only_picture(path):
    assert path.read_bytes().startswith(PNG)
    assert 1_000 < path.stat().st_size < 300_000
    assert list(path.parent.iterdir()) == [path], "a temporary file is left"


def pixels(path):
    import matplotlib.image

    return matplotlib.image.imread(path)


DRAWN = {
    "filters-images": lambda path: plots.filters(X, path, (4, 6)),
    "filters-heat-map": lambda path: plots.filters(X, path),
    "filters-one": lambda path: plots.filters(X[:1], path, (6, 4)),
    "filters-of-zeros": lambda path: plots.filters(0 * X, path, (4, 6)),
    "filters-of-zeros-heat-map": lambda path: plots.filters(0 * X, path),
    "filters-diverged": lambda path: plots.filters(
        np.where(X > 0.9, np.inf, X), path, (4, 6)
    ),
    "filters-lost": lambda path: plots.filters(np.full((3, 5), np.nan), path),
    "filters-jax-bfloat16": lambda path: plots.filters(
        jnp.asarray(X, jnp.bfloat16), path, (4, 6)
    ),
    "reconstructions-images": lambda path: plots.reconstructions(X, X, path, (4, 6)),
    "reconstructions-lines": lambda path: plots.reconstructions(X, 1 - X, path),
    "reconstructions-few": lambda path: plots.reconstructions(X[:5], X[:5], path),
    "reconstructions-one-number": lambda path: plots.reconstructions(
        X[:1, :1], X[:1, :1], path
    ),
    "reconstructions-diverged": lambda path: plots.reconstructions(
        X, np.nan * X, path, (4, 6)
    ),
    "curves": lambda path: plots.curves(
        {"train/loss": np.arange(9.0), "validation/loss": np.ones(9), "train/l1": []},
        path,
    ),
    "curves-log": lambda path: plots.curves(
        {"train/loss": np.geomspace(100, 1, 50)}, path
    ),
    "curves-one-epoch": lambda path: plots.curves({"train/loss": [3.0]}, path),
    "curves-diverged": lambda path: plots.curves(
        {"train/loss": np.array([1.0, np.nan, np.inf])}, path
    ),
    "curves-lost": lambda path: plots.curves({"validation/loss": [np.nan]}, path),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
def test_a_picture_is_written_whole_and_its_path_returned(draw, tmp_path):
    path = draw(tmp_path / "picture.png")
    assert path == tmp_path / "picture.png"
    assert_is_the_only_picture(path)


def test_paths_may_be_strings_and_old_pictures_are_replaced(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    assert plots.filters(X, str(path)) == path
    assert_is_the_only_picture(path)


def test_a_failed_drawing_leaves_the_old_picture_and_no_temporary_file(tmp_path):
    path = tmp_path / "picture.nonsense"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="nonsense"):
        plots.filters(X, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_filters_are_ordered_by_norm_and_each_scaled_by_its_own_maximum(tmp_path):
    W = np.eye(16)[:4]
    scales = np.array([[1e-3], [5.0], [-2.0], [1.0]])
    drawn = pixels(plots.filters(scales * W, tmp_path / "a.png", (4, 4)))
    by_hand = np.array([[1.0], [-1.0], [1.0], [1.0]]) * W[[1, 2, 3, 0]]
    expected = pixels(plots.filters(by_hand, tmp_path / "b.png", (4, 4)))
    np.testing.assert_array_equal(drawn, expected)


def test_only_the_largest_filters_are_drawn(tmp_path):
    W = np.arange(1.0, 31)[:, None] * X[0]
    drawn = pixels(plots.filters(W, tmp_path / "a.png", (4, 6), max_filters=3))
    W[:-3] *= 0.5
    again = pixels(plots.filters(W, tmp_path / "b.png", (4, 6), max_filters=3))
    np.testing.assert_array_equal(drawn, again)


def test_mosaic_puts_images_side_by_side_with_gutters():
    images = np.arange(3 * 2 * 2, dtype=float).reshape(3, 2, 2)
    _ = np.nan
    expected = [
        [0, 1, _, 4, 5],
        [2, 3, _, 6, 7],
        [_, _, _, _, _],
        [8, 9, _, _, _],
        [10, 11, _, _, _],
    ]
    np.testing.assert_array_equal(plots._mosaic(images, 2), expected)


@pytest.mark.parametrize(
    ("input_dim", "shape"),
    [(1, None), (9, None), (16, (4, 4)), (64, (8, 8)), (65, None), (784, (28, 28))],
)
def test_square_shape(input_dim, shape):
    assert plots.square_shape(input_dim) == shape


def test_refusals_say_what_was_found(tmp_path):
    path = tmp_path / "picture.png"
    with pytest.raises(ValueError, match=r"W must be \[N, D\].*\(24,\)"):
        plots.filters(X[0], path)
    with pytest.raises(ValueError, match=r"24 columns.*\(5, 5\)"):
        plots.filters(X, path, (5, 5))
    with pytest.raises(ValueError, match=r"X has shape \(20, 24\).*\(19, 24\)"):
        plots.reconstructions(X, X[1:], path)
    with pytest.raises(ValueError, match=r"validation/loss.*\['train/l1'\]"):
        plots.curves({"train/l1": [1.0]}, path)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxae\[plots\]'"):
        plots.filters(X, tmp_path / "picture.png")


def test_matplotlib_is_imported_where_used_and_pyplot_never():
    code = (
        "import sys, tempfile, os\n"
        "from jaxae import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "path = os.path.join(tempfile.mkdtemp(), 'a.png')\n"
        "plots.curves({'train/loss': [1.0, 0.5]}, path)\n"
        "os.remove(path)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
