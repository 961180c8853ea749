"""The pages are true: their Python and commands run, their names and quotes exist."""

import contextlib
import importlib
import inspect
import io
import re
import shlex
import sys
from pathlib import Path

import jax
import pytest

from jaxae import Autoencoder, activations, cli, manual, observations, penalties
from jaxae.autoencoder import Parametrization, TiedParams, UntiedParams
from jaxae.cli import reporting

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
if (ROOT / "README.md").exists():
    PAGES.append(ROOT / "README.md")
DERIVATION = ROOT / "docs" / "derivation.md"

# What the derivation calls things by: modules, and records by the name of an instance.
MODULES = {
    "activations": "jaxae.activations",
    "observations": "jaxae.observations",
    "manual": "jaxae.manual",
    "penalties": "jaxae.penalties",
    "prefixes": "jaxae.prefixes",
    "sparse": "jaxae.sparse",
    "parametrizations": "jaxae.autoencoder.parametrizations",
    "model": "jaxae.autoencoder.model",
    "objective": "jaxae.objective",
    "terms": "jaxae.terms",
    "gradcheck": "jaxae.gradcheck",
}
RECORDS = {
    "ae": (Autoencoder,),
    "activation": (activations.Activation,),
    "bp": (manual.Backprop,),
    "observation": (observations.Observation,),
    "parametrization": (Parametrization,),
    "params": (TiedParams, UntiedParams),
    "paths": (manual.Paths,),
    "penalty": (penalties.Penalty,),
}
NAME = rf"((?:{'|'.join([*MODULES, *RECORDS])})(?:\.[A-Za-z_]\w*)+)"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Columns of a table that are the same on every machine; the numbers are not.
COLUMNS = {"leaf", "shape", "dtype", "verdict", "precision", "hint"}


def blocks(text, language):
    """(line number, content) of every fenced block of the language."""
    return [
        (text.count("\n", 0, fence.start(2)), fence[2])
        for fence in FENCE.finditer(text)
        if fence[1] == language
    ]


def programs(text):
    """(line number, language, content, the output shown under it or None), by block."""
    fences = list(FENCE.finditer(text))
    for fence, after in zip(fences, [*fences[1:], None]):
        if fence[1] in ("python", "console"):
            is_shown = after is not None and after[1] == "text"
            line = text.count("\n", 0, fence.start(2))
            yield line, fence[1], fence[2], after[2] if is_shown else None


def has_programs(page):
    return any(programs(page.read_text(encoding="utf-8")))


def name_of(page):
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def commands(block):
    """The arguments of each command of a console block, `$ jaxae VERB ...`."""
    for line in block.replace("\\\n", " ").splitlines():
        prompt, program, *arguments = shlex.split(line, comments=True)
        assert (prompt, program) == ("$", "jaxae"), line
        yield arguments


def gist(output):
    """The lines of an output without the digits that may differ between machines."""
    lines, columns = [], {}
    output = re.sub(r"in \d+ of", "in # of", output)  # entries that deviate
    for line in output.splitlines():
        if line.startswith("leaf "):  # the head of a table says where its columns are
            starts = [name.start() for name in re.finditer(r"\w+", line)]
            spans = map(slice, starts, [*starts[1:], None])
            columns = {line[span].strip(): span for span in spans}
        elif re.match("evaluations|no |fn rounds|ignored|gradcheck|$", line):
            columns = {}
        cells = {
            name: line[span].strip()
            for name, span in columns.items()
            if name in COLUMNS
        }
        masked = re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", line.rstrip())
        lines.append(cells or masked)
    return lines


def without_blocks(text):
    return FENCE.sub("", text)


def names_in(text):
    """Dotted names that a backticked span begins with."""
    return sorted(set(re.findall(rf"`{NAME}", without_blocks(text))))


def quotations_in(text):
    """(name of a function, code that the page says is in it)."""
    return re.findall(rf"`{NAME}`:\s+`([^`]+)`", without_blocks(text))


def resolve(name):
    """The object of that name; AttributeError if there is none."""
    first, *rest = name.split(".")
    if first in MODULES:
        found = importlib.import_module(MODULES[first])
    else:
        found = next((r for r in RECORDS[first] if hasattr(r, rest[0])), None)
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def squeeze(code):
    return re.sub(r"\s", "", code).replace(",)", ")")


def is_quoted_rightly(name, code):
    return squeeze(code) in squeeze(inspect.getsource(resolve(name)))


TEXT = DERIVATION.read_text(encoding="utf-8")


def as_parameter(page):
    """One page computes in float16, which XLA cannot compile for every processor."""
    marks = [pytest.mark.float16] if name_of(page) == "how_to/precision" else []
    return pytest.param(page, marks=marks, id=name_of(page))


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile the pages' programs without optimisation, in half the time.

    JAX's cache of compiled programs does not distinguish the two kinds. It is cleared,
    so that no test compares a program of one kind with one of the other.
    """
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.mark.usefixtures("quick_compilation", "no_step_norms")  # no page has norms
@pytest.mark.parametrize("page", [as_parameter(p) for p in PAGES if has_programs(p)])
def test_blocks_of_the_page_run_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # `jaxae gradcheck` adds the folder
    # For speed; the pictures of a run are tested in test_cli.py.
    monkeypatch.setattr(reporting, "draw", lambda *arguments: None)
    namespace = {"__name__": page.stem}
    for line, language, block, shown in programs(page.read_text(encoding="utf-8")):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if language == "python":
                # Blank lines in front: a traceback then shows the line of the page.
                exec(compile("\n" * line + block, str(page), "exec"), namespace)
            else:
                for arguments in commands(block):
                    assert cli.main(arguments) == 0, arguments
        if shown is not None:
            assert gist(printed.getvalue()) == gist(shown), printed.getvalue()


def test_outputs_are_compared_but_for_their_digits():
    [(_, language, code, shown)] = programs("```python\n1\n```\n\n```text\n2\n```\n")
    assert (language, code, shown) == ("python", "1\n", "2\n")
    row = "leaf  verdict  error    hint\nW     WRONG    {}  {}\nevaluations: fn {}"
    table = gist(row.format("1.0e+00", "sign", 59))
    assert table == gist(row.format("1.1e+00", "sign", 60))
    assert table != gist(row.format("1.0e+00", "zero", 59))
    assert table != gist(row.format("1.0e+00", "sign", 59).replace("WRONG", "wrong"))


def test_console_blocks_are_read_as_a_shell_reads_them():
    block = "$ jaxae train --out a \\\n    --epochs 2\n$ jaxae plot a  # again\n"
    expected = [["train", "--out", "a", "--epochs", "2"], ["plot", "a"]]
    assert list(commands(block)) == expected
    with pytest.raises(AssertionError):
        list(commands("$ make demo\n"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_the_page_lead_to_files(page):
    text = without_blocks(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_page_has_a_place_in_the_navigation():
    _, _, navigation = (
        (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")
    )
    listed = set(re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE))
    folder = ROOT / "docs"
    assert listed == {
        page.relative_to(folder).as_posix() for page in folder.rglob("*.md")
    }


def test_tests_that_a_page_names_exist():
    named = {
        test
        for page in PAGES
        for test in re.findall(
            r"(tests/\w+\.py)::(test_\w+)", page.read_text(encoding="utf-8")
        )
    }
    assert named
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", names_in(TEXT))
def test_name_in_the_derivation_exists(name):
    resolve(name)


@pytest.mark.parametrize(("name", "code"), quotations_in(TEXT))
def test_code_quoted_by_the_derivation_is_in_the_function_it_names(name, code):
    assert is_quoted_rightly(name, code)


def test_the_derivation_is_read_at_all():
    assert len(blocks(TEXT, "python")) >= 4
    assert len(names_in(TEXT)) >= 40
    assert len(quotations_in(TEXT)) >= 50


def test_what_does_not_exist_is_found_out():
    quotation = "`activations._elementwise._tanh_slope`: `1 - z**3`"
    page = f"`manual._forwards`, `ae.lost`\n{quotation}\n"
    assert names_in(page) == [
        "activations._elementwise._tanh_slope",
        "ae.lost",
        "manual._forwards",
    ]
    for name in ("manual._forwards", "ae.lost", "params.W_mid"):
        with pytest.raises(AttributeError):
            resolve(name)
    [(name, code)] = quotations_in(page)
    assert not is_quoted_rightly(name, code)
    assert is_quoted_rightly(name, "1 - z**2")
