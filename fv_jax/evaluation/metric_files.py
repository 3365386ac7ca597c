"""Metrics that users bring: Python files in a folder, for networks whose weights no package contains.

A file NAME.py defines, for a metric of this name,

    DIRECTION = 'higher'                                # or 'lower': which values are better
    def score(frames): ...                              # uint8 (F, H, W, 3) -> a number

The files are executed. A score that fails or is not finite is reported as not computed, and ends nothing.
"""

import importlib.util
import math
import pathlib
from collections.abc import Callable

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.core.local_copies import local_copy
from fv_jax.core.paths import StoragePath
from fv_jax.evaluation.suite import Metric
from fv_jax.evaluation.videos import NotApplicableError

DIRECTIONS = ('higher', 'lower')


def read_metric_files(folder: StoragePath) -> list[Metric]:
    """Reads the metrics of a folder, in the order of their names.

    Raises:
      ValueError: the folder holds none, or a file fails, or lacks DIRECTION or score.
    """
    require(folder.is_dir(), f'{folder}: no such folder')
    files = sorted(path for path in folder.glob('*.py') if not path.name.startswith(('.', '_')))
    require(files, f'{folder}: holds no metrics; a metric is a file NAME.py with DIRECTION and score(frames)')
    local = local_copy(folder)  # of the whole folder: a file may read others beside it
    return [_read_file(path, local / path.name) for path in files]


def _read_file(path: StoragePath, local: pathlib.Path) -> Metric:
    """Reads a metric from the local copy of its file; `path` is for messages."""
    spec = importlib.util.spec_from_file_location(f'metric_file_{path.stem}', local)
    module = importlib.util.module_from_spec(spec)
    with error_context(f'{path}: ', Exception):
        spec.loader.exec_module(module)
    direction, score = getattr(module, 'DIRECTION', None), getattr(module, 'score', None)
    require(direction in DIRECTIONS, f'{path}: DIRECTION={direction!r}; must be one of {", ".join(DIRECTIONS)}')
    require(callable(score), f'{path}: has no function score(frames)')
    per_frame = _as_per_frame(path, score)
    return Metric(path.stem, path.stem, direction, per_frame, 3, needs_truth=False, uses_truth=False, window=0)


def _as_per_frame(path: StoragePath, score: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], np.ndarray]:
    def per_frame(video: np.ndarray) -> np.ndarray:
        with error_context(f'{path}: score failed: ', Exception, NotApplicableError):
            value = float(score(video))
        require(math.isfinite(value), f'{path}: score returned {value}', NotApplicableError)
        return np.array([value])

    return per_frame
