"""A run that is killed at any moment resumes bit-identically: a few kills."""

import pytest
import soak


@pytest.mark.parametrize("num_kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing(tmp_path, num_kills):
    tally = soak.soak(tmp_path, num_kills, seed=1, say=lambda tally: None)
    assert tally.kills == num_kills and tally.different == ()
    assert tally.inside_a_save >= num_kills // 3
