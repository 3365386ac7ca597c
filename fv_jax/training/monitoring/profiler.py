"""Profiler traces of a few steps for xprof (`pip install xprof; xprof DIR/profile`), requested by step or by signal."""

import dataclasses
import logging
import re
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError

log = logging.getLogger(__name__)

FOLDER = 'profile'  # in a run's folder
MAX_STEPS = 20  # a trace grows by megabytes per step
STEPS_ON_SIGNAL = 3
MAX_SIGNALS = 10  # per process, so that signals cannot fill the disk
SIGNAL = signal.SIGUSR1


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """The steps of a trace, from `first` to `last` inclusive, counted from 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> 'ProfileSteps':
        """Parses '10:13' or '10'. Raises ConfigError."""
        match = re.fullmatch(r'(\d+)(?::(\d+))?', text)
        require(match is not None, f'--profile-steps={text}: must be FIRST:LAST, as in 10:13', ConfigError)
        first, last = int(match[1]), int(match[2] or match[1])
        require(
            1 <= first <= last < first + MAX_STEPS,
            f'--profile-steps={text}: must be at least 1, in ascending order, and at most {MAX_STEPS} steps',
            ConfigError,
        )
        return cls(first, last)


class TraceSignal:
    """A context within which SIGUSR1 requests a trace instead of ending the process."""

    def __init__(self):
        self._requested = False
        self._before = signal.SIG_DFL

    def __enter__(self) -> 'TraceSignal':
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(SIGNAL, self._notice)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, signal.SIG_DFL if self._before is None else self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def take_request(self) -> bool:
        """Returns whether a trace was requested since the last call."""
        requested, self._requested = self._requested, False
        return requested


class Profiler:
    """Starts and stops traces; called before each step. `close` ends a trace that is still open."""

    def __init__(self, steps: ProfileSteps | None, folder: Path, trace_signal: TraceSignal | None = None):
        self._steps, self._folder = steps, folder
        self._trace_signal, self._left = trace_signal or TraceSignal(), MAX_SIGNALS
        self._open, self._size_before = False, 0

    def __call__(self, step: int, before: Any) -> None:
        """Starts or ends a trace before a step.

        Args:
          step: the one about to be dispatched.
          before: results of the step before it. It is waited for, so that a trace contains whole steps.
        """
        if self._open and step > self._steps.last:
            jax.block_until_ready(before)
            self.close()
        if not self._open and self._trace_signal.take_request():
            self._request(step)
        if not self._open and self._steps is not None and step == self._steps.first:
            jax.block_until_ready(before)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be an event, gigabytes of them
            self._size_before = self._size()
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._open = True

    def _request(self, step: int) -> None:
        if not self._left:
            log.info(f'no profile: signals have already requested {MAX_SIGNALS}')
            return
        self._left -= 1
        self._steps = ProfileSteps(step, step + STEPS_ON_SIGNAL - 1)

    def close(self) -> None:
        """Ends a trace that is open, and logs where it is."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            size = (self._size() - self._size_before) / 1e6
            log.info(f'profile of steps {self._steps.first} to {self._steps.last}: {self._folder} ({size:.1f} MB)')

    def _size(self) -> int:
        """Returns the size of all traces in the folder, in bytes."""
        return sum(path.stat().st_size for path in self._folder.rglob('*') if path.is_file())

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()
