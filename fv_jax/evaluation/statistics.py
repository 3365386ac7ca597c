"""Means over clips with their standard errors, and paired differences with confidence intervals.

    SE = s / sqrt(n)                                               s: standard deviation over clips, n - 1 in it     (1)
    interval of a paired difference d:  mean d +- t(n - 1) s_d / sqrt(n)                  Student's t               (2)

Clips differ more from each other than methods do: two methods are compared by the differences on the same clips, not by
their means and standard errors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95


class Summary(NamedTuple):
    """A mean over clips. standard_error: by (1); None for one clip, or where a value is infinite."""

    mean: float
    standard_error: float | None
    clips: int


class PairedDifference(NamedTuple):
    """The mean difference over clips. low, high: its confidence interval by (2); None for one clip."""

    difference: float
    low: float | None
    high: float | None
    clips: int


def summarize(values: Sequence[float | None]) -> Summary | None:
    """Takes the mean over the clips that have a value. Returns None if none has."""
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return None
    error = None
    if len(known) > 1 and np.isfinite(known).all():
        error = float(known.std(ddof=1) / math.sqrt(len(known)))
    return Summary(float(known.mean()), error, len(known))


def paired_difference(
    values: Sequence[float | None], others: Sequence[float | None], confidence: float = CONFIDENCE
) -> PairedDifference | None:
    """Compares two methods on the same clips, `values` less `others`.

    Args:
      values, others: of every clip, in one order. A clip counts if both values exist and are finite.
      confidence: of the interval, between 0 and 1.

    Returns:
      The difference; None if no clip counts.
    """
    pairs = zip(values, others, strict=True)
    differences = [x - y for x, y in pairs if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    found = summarize(differences)
    if found is None:
        return None
    low = high = None
    if found.standard_error is not None:
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, found.clips - 1)) * found.standard_error
        low, high = found.mean - half, found.mean + half
    return PairedDifference(found.mean, low, high, found.clips)
