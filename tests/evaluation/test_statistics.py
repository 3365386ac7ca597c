"""Means and paired differences over clips, against SciPy's t-test."""

import numpy as np
import pytest
import scipy.stats

from fv_jax.evaluation.statistics import paired_difference, summarize


def test_summarize_takes_the_mean_and_its_standard_error():
    values = [20.0, 23.0, 27.5, 21.0]
    found = summarize(values)
    assert found.mean == np.mean(values) and found.clips == 4
    assert found.standard_error == pytest.approx(scipy.stats.sem(values))


def test_summarize_leaves_clips_without_a_value_out():
    assert summarize([3.0, None]) == (3.0, None, 1)
    assert summarize([None, None]) is None
    assert summarize([3.0, float('inf')]) == (float('inf'), None, 2)


def test_paired_difference_is_the_interval_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    values, others = rng.normal(1, 1, 9), rng.normal(0, 1, 9)
    expected = scipy.stats.ttest_rel(values, others).confidence_interval(0.9)
    found = paired_difference(list(values), list(others), 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.difference == pytest.approx(np.mean(values - others)) and found.clips == 9


def test_paired_difference_counts_clips_that_both_methods_have():
    infinite = float('inf')
    assert paired_difference([1.0, None, infinite], [0.5, 2.0, 3.0]) == (0.5, None, None, 1)
    assert paired_difference([None], [1.0]) is None
