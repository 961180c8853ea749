"""Killed at any moment, a run goes on as if nothing had happened: a few kills of it."""

import pytest
import soak


@pytest.mark.parametrize("num_kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing(tmp_path, num_kills):
    tally = soak.soak(tmp_path, num_kills, seed=1, say=lambda tally: None)
    assert tally.kills == num_kills and tally.different == ()
    assert tally.inside_a_save >= num_kills // 3
