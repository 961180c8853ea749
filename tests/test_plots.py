import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxae import metrics, plots
from jaxae.plots import drawing, runs

PNG = b"\x89PNG\r\n\x1a\n"
X = np.random.default_rng(0).uniform(size=(20, 24))


def assert_is_the_only_picture(path):
    assert path.read_bytes().startswith(PNG)
    assert 1_000 < path.stat().st_size < 400_000
    assert list(path.parent.iterdir()) == [path], "a temporary file remains"


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
PLOTS = {
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


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS.keys())
def test_one_file_is_written_and_its_path_returned(draw, tmp_path):
    path = draw(tmp_path / "picture.png")
    assert path == tmp_path / "picture.png"
    assert_is_the_only_picture(path)


def test_paths_may_be_strings_and_old_files_are_replaced(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    assert plots.filters(X, str(path)) == path
    assert_is_the_only_picture(path)


def test_a_failed_plot_leaves_the_old_file_and_no_temporary_file(tmp_path):
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


def test_curves_have_a_panel_for_each_kind_of_metric(tmp_path):
    losses = {name: v for name, v in ALL_METRICS.items() if name.endswith("/loss")}
    alone = pixels(plots.curves(losses, tmp_path / "a.png"))
    others = {
        "train/l1": [1.0],
        "validation/squared_error": [2.0],
        "update_ratio/W": [],
    }
    again = pixels(plots.curves({**losses, **others}, tmp_path / "b.png"))
    np.testing.assert_array_equal(alone, again)
    complete = pixels(plots.curves(ALL_METRICS, tmp_path / "c.png"))
    assert complete.shape[0] > 1.5 * alone.shape[0]  # two rows of panels
    two = {**losses, "validation/fvu": [0.5]}
    beside = pixels(plots.curves(two, tmp_path / "d.png"))
    assert beside.shape[1] > 1.5 * alone.shape[1] and beside.shape[0] < 550


def test_panels_show_the_available_metrics_and_both_paths_of_a_leaf():
    labels = {
        panel.ylabel: [label for label, *_ in panel.lines]
        for panel in runs.curve_panels(ALL_METRICS)
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
    by_losses = runs.curve_panels({"train/loss": [1.0]})
    assert [len(panel.lines) for panel in by_losses] == [1, 0, 0, 0]


def test_latent_usage_is_invariant_to_order_and_sign(tmp_path):
    Z = X * (np.arange(24) % 3 > 0)
    drawn = pixels(plots.latent_usage(Z, tmp_path / "a.png"))
    again = pixels(plots.latent_usage(-Z[::-1, ::-1], tmp_path / "b.png"))
    np.testing.assert_allclose(drawn, again, atol=1e-6)


def test_latent_usage_counts_dead_and_always_active_latents(tmp_path, monkeypatch):
    figures, save = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda *a: figures.append(a[0]) or save(*a))
    # 0.011 is active: it is above 1% of the largest. 0.009 is neither active nor dead.
    Z = np.array([[1.0, 0.0, 0.009, 0.011], [1.0, 0.0, -0.009, 0.011], [0, 0, 0, 1.0]])
    assert metrics.dead_fraction(Z) == 1 / 4
    plots.latent_usage(Z, tmp_path / "a.png")
    assert figures[0].get_suptitle() == (
        "4 latents on 3 examples: 1 dead, 1 active on every one"
    )
    (dead,) = [bar for bar in figures[0].axes[1].patches if bar.get_x() < -0.01]
    assert dead.get_height() == 1


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


def test_errors_name_the_argument_and_its_shape(tmp_path):
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


# ---- sweeps --------------------------------------------------------------------------


def grid(**axes):
    """The table of a sweep with a known loss, which is least at learning_rate 0.01."""
    import pandas as pd

    columns = np.meshgrid(*map(np.arange, map(len, axes.values())), indexing="ij")
    table = pd.DataFrame(
        {
            name: np.asarray(values)[column.ravel()]
            for (name, values), column in zip(axes.items(), columns)
        }
    )
    rate, seed = np.log10(table["learning_rate"]), table.get("seed", 0)
    table["train/loss"] = 2 + (rate + 2) ** 2 + 0.1 * seed
    table["validation/loss"] = table["train/loss"] + 0.5
    table["status"] = "finished"
    return table


RATES, SEEDS = [1e-4, 1e-3, 1e-2, 1e-1], range(3)
GRID = {"learning_rate": RATES, "l1": [0.0, 0.01, 0.1], "seed": SEEDS}


def with_stopped_lanes(table):
    """The table with some lanes diverged, and others stopped early by halving."""
    table.loc[table["learning_rate"] > 0.05, "status"] = "diverged"
    table.loc[table.index[0], ["status", "validation/loss"]] = ["diverged", np.nan]
    table.loc[table["learning_rate"] < 5e-4, "status"] = "halved"
    return table


def random_points():
    table = grid(learning_rate=np.geomspace(1e-4, 1e-1, 20), tied=[True, False])
    table["l1"] = np.repeat(np.random.default_rng(0).uniform(size=20), 2)
    return table


TABLES = {
    "grid": lambda: grid(**GRID),
    "stopped-lanes": lambda: with_stopped_lanes(grid(**GRID)),
    "random": random_points,
    "all-diverged": lambda: grid(**GRID).assign(status="diverged"),
    "many-settings": lambda: grid(learning_rate=RATES, l1=range(5), latent_dim=[1, 2]),
}
SWEEP_PLOTS = {
    "curves": lambda t, path: plots.sweep_curves(t, "learning_rate", path),
    "curves-l1": lambda t, path: plots.sweep_curves(t, "l1", path, "train/loss"),
    "map": lambda t, path: plots.sweep_map(t, "learning_rate", "l1", path),
    "parallel": lambda t, path: plots.sweep_parallel(t, path),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("draw", SWEEP_PLOTS.values(), ids=SWEEP_PLOTS)
def test_every_sweep_is_plotted_to_one_file(tmp_path, draw, table):
    path = tmp_path / "picture.png"
    assert draw(table(), path) == path
    assert_is_the_only_picture(path)


def figure_of(monkeypatch, tmp_path, draw):
    figures, save = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda *a: figures.append(a[0]) or save(*a))
    draw(tmp_path / "a.png")
    return figures[0]


def test_a_line_is_the_mean_over_seeds_and_its_band_the_range(tmp_path, monkeypatch):
    table = grid(learning_rate=RATES, l1=[0.0, 0.1], seed=SEEDS)
    table.loc[table["l1"] > 0, "validation/loss"] += 1
    figure = figure_of(
        monkeypatch, tmp_path, lambda p: plots.sweep_curves(table, "learning_rate", p)
    )
    (axes,) = figure.axes
    first, second = axes.lines
    np.testing.assert_allclose(first.get_xdata(), np.log10(RATES))
    np.testing.assert_allclose(first.get_ydata(), [6.6, 3.6, 2.6, 3.6])
    np.testing.assert_allclose(second.get_ydata(), [7.6, 4.6, 3.6, 4.6])
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [2.5, 6.7])
    assert axes.get_title(loc="left") == (
        "best validation/loss: 2.6 (mean of 3 seeds) at learning_rate 0.01, l1\n0"
    )
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["l1 0", "l1 0.1", "least to largest of 3 seeds"]


def test_diverged_and_halved_lanes_are_shown_but_not_averaged(tmp_path, monkeypatch):
    table = with_stopped_lanes(grid(**GRID))
    figure = figure_of(
        monkeypatch, tmp_path, lambda p: plots.sweep_curves(table, "learning_rate", p)
    )
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [-3, -2])
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "diverged (10 of 36 lanes)" in words
    assert "stopped early by halving (8 lanes)" in words


def test_a_cell_of_a_map_is_the_best_of_the_other_axes(tmp_path, monkeypatch):
    table = grid(learning_rate=RATES, l1=[0.0, 0.1], latent_dim=[2, 4], seed=SEEDS)
    table.loc[table["latent_dim"] == 2, "validation/loss"] += 1
    table.loc[table["learning_rate"] > 0.05, "status"] = "diverged"
    figure = figure_of(
        monkeypatch,
        tmp_path,
        lambda p: plots.sweep_map(table, "learning_rate", "l1", p),
    )
    axes = figure.axes[0]
    expected = [[6.6, 3.6, 2.6, np.nan]] * 2
    np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), expected)
    words = [text.get_text() for text in axes.texts]
    assert words[:4] == ["6.6", "3.6", "2.6", "\N{MULTIPLICATION X}\ndiverged"]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        *("0.0001", "0.001", "0.01", "0.1")
    ]
    assert figure.axes[1].get_ylabel().endswith("best over latent_dim")


def test_plots_take_a_sweep_or_its_table(tmp_path):
    class Sweep:
        table = grid(**GRID)

    one = plots.sweep_parallel(Sweep(), tmp_path / "a.png")
    two = plots.sweep_parallel(Sweep.table, tmp_path / "b.png")
    assert one.read_bytes() == two.read_bytes()


def test_errors_of_sweep_plots_say_what_would_do(tmp_path):
    path, table = tmp_path / "picture.png", grid(**GRID)
    with pytest.raises(ValueError, match=r"axis must be .*learning_rate, l1, got 'lr'"):
        plots.sweep_curves(table, "lr", path)
    with pytest.raises(ValueError, match=r"not the seed"):
        plots.sweep_curves(table, "seed", path)
    with pytest.raises(ValueError, match=r"metric must be one of train/loss, .*'loss'"):
        plots.sweep_curves(table, "l1", path, "loss")
    with pytest.raises(ValueError, match=r"x and y must be two axes"):
        plots.sweep_map(table, "l1", "l1", path)
    with pytest.raises(ValueError, match=r"must be what jaxae.sweep returned"):
        plots.sweep_parallel(table[:0], path)
    with pytest.raises(ValueError, match=r"an axis other than the seed"):
        plots.sweep_parallel(grid(learning_rate=[0.1], seed=SEEDS), path)
    assert not list(tmp_path.iterdir())
