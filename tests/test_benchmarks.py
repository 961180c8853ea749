"""The suites of benchmarks/ run, and the page of the docs comes from their results."""

import math
import os
import re

import pytest

from benchmarks import __main__ as command
from benchmarks import page, results
from benchmarks.growth.suite import fit
from benchmarks.turns import ROOT, Program, Times, ratio, take_turns

FAKE = """
def program(name, path):
    def run():
        with open(path, "a") as log:
            log.write(name)
            return log.tell()

    run.setting = f"fake {name}"
    return run
"""


@pytest.mark.parametrize("suite", [*command.SUITES, command.ACCELERATOR])
def test_every_suite_runs_quickly(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    # Without peers, also where they are installed: their imports take most of a minute.
    monkeypatch.setattr("benchmarks.turns.PEERS", tmp_path)
    assert command.main([suite, "--quick"]) == 0
    assert not list(tmp_path.iterdir())  # the quick mode measures nothing


def test_the_page_is_up_to_date():
    assert page.PAGE.read_text() == page.page(), "run python -m benchmarks.page"


def test_the_page_has_its_figures():
    figures = re.findall(r"!\[.*?\]\((.*?)\)", page.PAGE.read_text())
    assert all((page.PAGE.parent / figure).is_file() for figure in figures)


def test_a_suite_without_results_is_not_yet_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    sections = page.page().split("\n## ")[4:]  # after the introduction
    assert len(sections) == len(command.SUITES) + 1
    assert all(page.MISSING in section for section in sections)


def test_contestants_take_turns_in_a_rotating_order(tmp_path):
    programs = {name: fake(name, tmp_path) for name in "AB"}
    times = take_turns(programs, num_rounds=2)
    assert (tmp_path / "log").read_text() == "ABBAAB"
    # The round that is not counted is left out of the results too.
    assert times["A"].results == [4, 5]
    assert len(times["B"].seconds) == 2
    assert times["B"].setting == "fake B"


def test_programs_without_their_environment_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.turns.PEERS", tmp_path)
    programs = {"A": fake("A", tmp_path), "peer": fake("B", tmp_path, is_peer=True)}
    assert list(take_turns(programs, num_rounds=1)) == ["A"]


def test_a_program_that_fails_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="'broken' ended"):
        take_turns({"broken": Program("turns:no_such_function")}, num_rounds=1)


def test_the_ratio_is_taken_within_each_round():
    # A slow second round strikes both; the ratios of medians would be 1.5.
    times, reference = times_of([2.0, 30.0, 2.0]), times_of([1.0, 20.0, 2.0])
    assert ratio(times, reference) == (1.5, 1.25, 1.75)


def test_the_faster_one_is_named_only_outside_the_quartiles():
    assert page.faster("peer", "jaxae", [1.2, 1.1, 1.3]) == "jaxae"
    assert page.faster("peer", "jaxae", [0.8, 0.7, 0.9]) == "peer"
    assert page.faster("peer", "jaxae", [1.0, 0.9, 1.1]) == "neither"
    assert page.faster("peer", "jaxae", [3.0, 2.0, 9.0]) == "neither"  # unsteady
    assert page.ratio([3.0, 2.0, 9.0]).endswith("\\*")


def test_the_fit_of_a_line():
    slope, error, intercept = fit([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0])
    assert (slope, error, intercept) == pytest.approx((2, 0, 1), abs=1e-12)
    # Residuals 1/4 (1, -1, -1, 1): variance (4/16) / 2, and sum (x - 1.5)^2 = 5.
    assert fit([0.0, 1.0, 2.0, 3.0], [1.0, 0.5, 0.5, 1.0]).error == pytest.approx(
        math.sqrt((4 / 16 / 2) / 5)
    )


def fake(name, folder, is_peer=False):
    """A contestant that appends its name to a log; the result is the log's length."""
    module = folder / "benchmarks" / "fake.py"  # `benchmarks` is a namespace package
    module.parent.mkdir(exist_ok=True)
    module.write_text(FAKE)
    options = {"name": name, "path": str(folder / "log")}
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return Program("fake:program", options, is_peer, environment)


def times_of(seconds):
    return Times(seconds, [None] * 3, None, "", 0.0, 0.0, {})
