"""Traces of a few steps, for xprof (`pip install xprof; xprof DIR/profile`): asked for by step, or by a signal."""

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
MOST_STEPS = 20  # a trace grows by megabytes a step
STEPS_ON_SIGNAL = 3
MOST_ON_SIGNAL = 10  # of a process: a disk is not to be filled by whoever sends signals
SIGNAL = signal.SIGUSR1


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """From the first to the last, both with."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> 'ProfileSteps':
        """'10:13' or '10'. Raises ConfigError."""
        match = re.fullmatch(r'(\d+)(?::(\d+))?', text)
        require(match is not None, f'--profile-steps={text}: must be FIRST:LAST, as in 10:13', ConfigError)
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last < first + MOST_STEPS:
            raise ConfigError(f'--profile-steps={text}: must be from 1 on, upwards, at most {MOST_STEPS} steps')
        return cls(first, last)


class OnSignal:
    """Within it, SIGUSR1, which would end the process, asks for a trace; it is remembered until somebody looks."""

    def __init__(self):
        self._asked = False
        self._before = signal.SIG_DFL

    def __enter__(self) -> 'OnSignal':
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(SIGNAL, self._notice)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, signal.SIG_DFL if self._before is None else self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def taken(self) -> bool:
        """Whether it was asked since the last call."""
        asked, self._asked = self._asked, False
        return asked


class Profiler:
    """Called before each step; `close` ends a trace that is still open."""

    def __init__(self, steps: ProfileSteps | None, folder: Path, on_signal: OnSignal | None = None):
        self._steps, self._folder = steps, folder
        self._on_signal, self._left = on_signal or OnSignal(), MOST_ON_SIGNAL
        self._open, self._size_before = False, 0

    def __call__(self, step: int, before: Any) -> None:
        """step: the one that is about to be started. before: what the one before it gives back."""
        if self._open and step > self._steps.last:
            jax.block_until_ready(before)
            self.close()
        if not self._open and self._on_signal.taken():
            self._ask(step)
        if not self._open and self._steps is not None and step == self._steps.first:
            jax.block_until_ready(before)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be an event, gigabytes of them
            self._size_before = self._size()
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._open = True

    def _ask(self, step: int) -> None:
        if not self._left:
            log.info(f'no profile: {MOST_ON_SIGNAL} were asked for by signal already')
            return
        self._left -= 1
        self._steps = ProfileSteps(step, step + STEPS_ON_SIGNAL - 1)

    def close(self) -> None:
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            size = (self._size() - self._size_before) / 1e6
            log.info(f'profile of steps {self._steps.first} to {self._steps.last}: {self._folder} ({size:.1f} MB)')

    def _size(self) -> int:
        """Bytes of all traces that are there."""
        return sum(path.stat().st_size for path in self._folder.rglob('*') if path.is_file())

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()
