"""The package as a whole: its names, its layout, what importing it costs."""

import ast
import itertools
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
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
    "_moments",
    "gradcheck",
    "sparse",
    "activations",
    "observations",
    "autoencoder",
    "metrics",
    "corruptions",
    "terms",
    "prefixes",
    "penalties",
    "schedules",
    "objective",
    "recovery",
    "manual",
    "optimizers",
    "data",
    "formats",
    "features",
    "tokens",
    "dashboards",
    "_orbax",
    "checkpoints",
    "training",
    "dead_latents",
    "sweeps",
    "plots",
    "loggers",
    "sklearn",
    "report",
    "__init__",
    "cli",
]


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """The dotted names that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxae":
            yield from (f"jaxae.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported(path):
    """Modules of jaxae that a file imports, by their top name."""
    for name in imports_of(path):
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


def test_the_architecture_lists_the_layers_in_this_order():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("\n## Layout\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = re.findall(r"`(\w+)(?:\.py|/)`", " ".join(rows))
    assert names == LAYERS


def test_gradcheck_imports_nothing_of_jaxae():
    for path in FILES:
        if module_of(path) == "gradcheck":
            assert set(imported(path)) <= {"gradcheck"}


def used_of_training(path):
    """(module, name) of all that a file uses of `jaxae.training`, "" for itself."""
    tree, modules = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        source = (getattr(node, "module", None) or "").split(".")
        if isinstance(node, ast.ImportFrom) and source[:2] == ["jaxae", "training"]:
            for alias in node.names:
                if source[2:] or not is_module_of_training(alias.name):
                    yield ".".join(source[2:]), alias.name
                else:
                    modules[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in modules:
                yield modules[owner], node.attr
            elif owner.startswith("jaxae.training"):
                yield owner.removeprefix("jaxae.training").removeprefix("."), node.attr


def is_module_of_training(name):
    return (PACKAGE / "training" / f"{name}.py").exists()


def test_other_packages_use_the_declared_names_of_training():
    """The public names and `training.KERNEL`, which declares no name without use."""
    used = {}
    for path in FILES:
        if module_of(path) in ("sweeps", "plots", "sklearn", "cli"):
            for module, name in used_of_training(path):
                used.setdefault(module, set()).add(name)
    assert used.pop("") <= {*jaxae.training.__all__}
    assert used == jaxae.training.KERNEL


def test_public_names():
    assert list(jaxae.__all__) == sorted(jaxae.__all__)
    for name in jaxae.__all__:
        assert hasattr(jaxae, name)


def test_importing_imports_jax_optax_jaxtyping_and_safetensors_alone():
    """Without a clock: what else is used is imported where it is used.

    `dir(jaxae)` is what is public, before any of it is used.
    """
    code = (
        "import sys, jax, optax\n"
        "def packages(): return {name.partition('.')[0] for name in sys.modules}\n"
        "before = packages()\n"
        "import jaxae\n"
        "print(*sorted(packages() - before - sys.stdlib_module_names))\n"
        "print(*dir(jaxae))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    # jaxtyping and safetensors themselves import nothing that jax does not.
    packages, names = map(str.split, done.stdout.splitlines())
    assert packages == ["jaxae", "jaxtyping", "safetensors"]
    assert {n for n in names if not n.startswith("__")} | {"__version__"} == {
        *jaxae.__all__
    }


def test_every_package_that_the_library_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for_users = [extras[name] for name in extras if name not in ("test", "dev")]
    requirements = [*project["dependencies"], *itertools.chain(*for_users)]
    declared = {re.match(r"[\w-]+", text)[0] for text in requirements}
    names = {"sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}
    found = {
        name.partition(".")[0] for path in FILES for name in imports_of(path)
    } - sys.stdlib_module_names
    # NumPy's version is jax's to choose.
    assert {names.get(name, name) for name in found} - {"numpy"} <= declared


def test_the_wheel_holds_the_package_alone(tmp_path):
    [path] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        [about] = [name for name in names if name.endswith("/METADATA")]
        metadata = wheel.read(about).decode()
    files = {name for name in names if ".dist-info/" not in name}
    assert "jaxae/py.typed" in files
    assert files == {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "Description-Content-Type: text/markdown" in metadata
    assert "Programming Language :: Python :: 3.11\n" in metadata


def test_the_sdist_holds_what_the_tests_and_a_citation_need(tmp_path):
    [path] = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tests = (path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/*.py"))
    assert {"CITATION.cff", "LICENSE", "README.md", "pyproject.toml", *tests} <= names


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
