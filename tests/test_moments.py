"""The moments of a sample, merged from those of its parts."""

import functools

import numpy as np
import pytest

from jaxae._moments import Moments, merge


def moments(X):
    mean = X.mean(axis=0)
    return Moments(len(X), mean, np.sum((X - mean[None]) ** 2, axis=0))


@pytest.mark.parametrize("boundaries", [[50], [1, 99], [10, 11, 70]], ids=str)
def test_merged_moments_are_those_of_the_union(boundaries):
    X = np.random.default_rng(0).normal(1e6, 1, size=(100, 3))
    merged = functools.reduce(merge, map(moments, np.split(X, boundaries)))
    expected = moments(X)
    assert merged.num_rows == 100
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=1e-15)
    np.testing.assert_allclose(merged.squares, expected.squares, rtol=1e-8)


def test_overflow_gives_infinity_without_a_warning():
    merged = merge(moments(np.array([[1e200]])), moments(np.array([[-1e200]])))
    assert merged.squares == np.inf and merged.mean == 0
