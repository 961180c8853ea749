import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxae import plots
from jaxae.plots import drawing, runs

PNG = b"\x89PNG\r\n\x1a\n"
X = np.random.default_rng(0).uniform(size=(20, 24))


def assert_is_the_only_picture(path):
    assert path.read_bytes().startswith(PNG)
    assert 1_000 < path.stat().st_size < 300_000
    assert list(path.parent.iterdir()) == [path], "a temporary file is left"


def pixels(path):
    import matplotlib.image

    return matplotlib.image.imread(path)


ALL_METRICS = {
    name: np.random.default_rng(1).uniform(size=40)
    for name in (
        "train/loss",
        "train/fvu",
        "train/dead_fraction",
        "train/saturated_fraction",
        "gradient/W",
        "gradient/b_enc",
        "gradient/activation/0",
        "gradient/encoder/W",
        "gradient/encoder/b_enc",
        "gradient/decoder/W",
        "update_ratio/W",
        "validation/loss",
        "validation/fvu",
        "validation/dead_fraction",
    )
} | {"gradient/decoder/b_enc": np.zeros(40)}
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
    "curves-all": lambda path: plots.curves(ALL_METRICS, path),
    "curves-all-one-epoch": lambda path: plots.curves(
        {name: values[:1] for name, values in ALL_METRICS.items()}, path
    ),
    "curves-all-diverged": lambda path: plots.curves(
        {
            name: np.where(values > 0.5, np.nan, 0)
            for name, values in ALL_METRICS.items()
        },
        path,
    ),
    "latent-usage": lambda path: plots.latent_usage(X, path),
    "latent-usage-dead": lambda path: plots.latent_usage(X * (np.arange(24) % 2), path),
    "latent-usage-all-dead": lambda path: plots.latent_usage(0 * X, path),
    "latent-usage-one-number": lambda path: plots.latent_usage(X[:1, :1], path),
    "latent-usage-many": lambda path: plots.latent_usage(
        np.repeat(X, 100, axis=1) - 0.5, path
    ),
    "latent-usage-diverged": lambda path: plots.latent_usage(
        np.where(X > 0.9, np.inf, np.where(X < 0.1, np.nan, X)), path
    ),
    "latent-usage-jax-bfloat16": lambda path: plots.latent_usage(
        jnp.asarray(X, jnp.bfloat16), path
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


def test_losses_alone_make_the_one_panel_whatever_else_is_measured(tmp_path):
    losses = {name: v for name, v in ALL_METRICS.items() if name.endswith("/loss")}
    alone = pixels(plots.curves(losses, tmp_path / "a.png"))
    others = {
        "train/l1": [1.0],
        "validation/squared_error": [2.0],
        "update_ratio/W": [],
    }
    again = pixels(plots.curves({**losses, **others}, tmp_path / "b.png"))
    np.testing.assert_array_equal(alone, again)
    whole = pixels(plots.curves(ALL_METRICS, tmp_path / "c.png"))
    assert whole.shape[0] > 1.5 * alone.shape[0]  # two rows of panels
    two = {**losses, "validation/fvu": [0.5]}
    beside = pixels(plots.curves(two, tmp_path / "d.png"))
    assert beside.shape[1] > 1.5 * alone.shape[1] and beside.shape[0] < 550


def test_panels_are_of_what_is_there_and_paths_of_leaves_that_both_reach():
    labels = {
        panel.ylabel: [label for label, *_ in panel.lines]
        for panel in runs._panels(ALL_METRICS)
    }
    assert labels == {
        "loss": ["train", "validation"],
        "fraction of variance unexplained": ["train", "validation"],
        "norm of the gradient": [
            "W",
            "W, encoder path",
            "W, decoder path",
            "b_enc",
            "activation/0",
        ],
        "fraction of latents": ["train saturated", "train dead", "validation dead"],
    }
    by_losses = runs._panels({"train/loss": [1.0]})
    assert [len(panel.lines) for panel in by_losses] == [1, 0, 0, 0]


def test_the_usage_of_latents_knows_neither_their_order_nor_their_sign(tmp_path):
    Z = X * (np.arange(24) % 3 > 0)
    drawn = pixels(plots.latent_usage(Z, tmp_path / "a.png"))
    again = pixels(plots.latent_usage(-Z[::-1, ::-1], tmp_path / "b.png"))
    np.testing.assert_allclose(drawn, again, atol=1e-6)


def test_usage_counts_who_is_never_and_who_is_always_active(tmp_path, monkeypatch):
    figures, save = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda *a: figures.append(a[0]) or save(*a))
    # By 1% of the largest: 0.009 is dead, as 0 is; 0.011 is active.
    Z = np.array([[1.0, 0.0, 0.009, 0.011], [1.0, 0.0, -0.009, 0.011], [0, 0, 0, 1.0]])
    plots.latent_usage(Z, tmp_path / "a.png")
    assert figures[0].get_suptitle() == (
        "4 latents on 3 examples: 2 dead, 1 active on every one"
    )
    (dead,) = [bar for bar in figures[0].axes[1].patches if bar.get_x() < -0.01]
    assert dead.get_height() == 2


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
    np.testing.assert_array_equal(runs._mosaic(images, 2), expected)


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
    with pytest.raises(ValueError, match=r"Z must be \[N, D\].*\(24,\)"):
        plots.latent_usage(X[0], path)
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
