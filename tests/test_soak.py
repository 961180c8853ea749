"""A run that is killed at any moment resumes bit-identically: a few kills."""

import pytest
import soak


@pytest.mark.slow  # test_resume.py and test_sweep_store.py kill a process each
def test_kills_change_nothing(tmp_path):
    tally = soak.soak(tmp_path, num_kills=10, seed=1, say=lambda tally: None)
    assert tally.kills == 10 and tally.different == ()
    assert tally.inside_a_save >= 3
