"""Evenly spaced indices, of frames or clips to look at."""

import numpy as np


def even_indices(length: int, count: int) -> np.ndarray:
    """Returns at most `count` indices of `length` items, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))
