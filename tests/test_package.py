"""The package as a whole: its names, its layout, what importing it costs."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.version import Version

import jaxae

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "jaxae"
# Imports run one way, top to bottom of this list (docs/architecture.md).
LAYERS = [
    "_version",
    "_checks",
    "_files",
    "_keys",
    "gradcheck",
    "activations",
    "observations",
    "autoencoder",
    "metrics",
    "corruptions",
    "penalties",
    "objective",
    "manual",
    "optimizers",
    "data",
    "checkpoints",
    "training",
    "sweeps",
    "plots",
    "__init__",
    "cli",
]


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Modules of jaxae that a file imports, by their top name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxae":
            names = [f"jaxae.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxae":
                yield parts[1] if len(parts) > 1 else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_its_layer():
    assert {module_of(path) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_run_one_way(path):
    here = LAYERS.index(module_of(path))
    for name in imported(path):
        assert name == module_of(path) or LAYERS.index(name) < here, name


def test_gradcheck_imports_nothing_of_jaxae():
    for path in FILES:
        if module_of(path) == "gradcheck":
            assert set(imported(path)) <= {"gradcheck"}


def test_public_names():
    assert list(jaxae.__all__) == sorted(jaxae.__all__)
    for name in jaxae.__all__:
        assert hasattr(jaxae, name)


def test_dir_shows_what_is_public_and_nothing_else():
    """In a process of its own, where what is imported when used was not used yet."""
    code = "import jaxae; print([n for n in dir(jaxae) if not n.startswith('__')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    public = [name for name in jaxae.__all__ if not name.startswith("__")]
    assert ast.literal_eval(done.stdout) == public
    assert {"gradcheck", "plots", "sweeps"} <= {*public}
    assert {"__version__", "__doc__", "__file__"} <= {*dir(jaxae)}


def test_import_is_light():
    """What is used in one place is imported there."""
    heavy = (
        "matplotlib, sklearn, rich, tyro, chex, pandas, numpyro, torch, "
        "beartype, datasets, orbax"
    ).split(", ")
    code = f"import sys, jaxae; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    # optax itself imports chex in some versions: no more than optax does.
    code = f"import sys, jax, optax; print([m for m in {heavy} if m in sys.modules])"
    baseline = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == baseline.stdout


def test_importing_changes_no_jax_configuration():
    code = (
        "import jax; before = dict(jax.config.values); import jaxae, jaxae.cli; "
        "assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_never_sets_global_configuration_nor_unpickles():
    for path in FILES:
        text = path.read_text()
        assert "config.update" not in text, path
        assert "pickle" not in {
            alias.name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for alias in node.names
        }, path


def test_version_follows_the_changelog():
    """Unreleased changes belong to a development version above the last release."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    unreleased, *releases = re.split(r"^## \[(.*)\].*$", changelog, flags=re.M)[1:]
    assert unreleased == "Unreleased"
    changes, last_release = releases[0].strip(), releases[1]
    version = Version(jaxae.__version__)
    assert version.is_devrelease == bool(changes)
    assert version > Version(last_release) if changes else version == last_release


def test_citation_names_the_last_release():
    citation = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.findall(r"^## \[(\d.*)\] - (.*)$", changelog, re.M)[0]
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation
    # The README's entry for BibTeX cites the same release.
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^  version = \{(.*)\},$", readme, re.M)[1] == version
