"""Profiler traces of a few steps for xprof (`pip install xprof; xprof DIR/profile`), requested by step or by signal."""

import contextlib
import dataclasses
import logging
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import atomic_write, make_folder
from fv_jax.core.paths import StoragePath

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

    def __init__(self, steps: ProfileSteps | None, folder: StoragePath, trace_signal: TraceSignal | None = None):
        self._steps, self._folder = steps, folder
        self._trace_signal, self._left = trace_signal or TraceSignal(), MAX_SIGNALS
        self._local = contextlib.ExitStack()  # open during a trace
        self._trace = Path()
        self._open = False

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
            self._trace = Path(self._local.enter_context(tempfile.TemporaryDirectory(prefix='fv_jax.')))
            jax.profiler.start_trace(self._trace, profiler_options=options)
            self._open = True

    def _request(self, step: int) -> None:
        if not self._left:
            log.info(f'no profile: signals have already requested {MAX_SIGNALS}')
            return
        self._left -= 1
        self._steps = ProfileSteps(step, step + STEPS_ON_SIGNAL - 1)

    def close(self) -> None:
        """Ends a trace that is open, copies it to the folder, and logs where it is."""
        if not self._open:
            return
        self._open = False
        with self._local:
            jax.profiler.stop_trace()
            steps = f'profile of steps {self._steps.first} to {self._steps.last}'
            try:
                log.info(f'{steps}: {self._folder} ({self._copy() / 1e6:.1f} MB)')
            except OSError as error:
                log.warning(f'{steps}: cannot be written to {self._folder} ({error})')

    def _copy(self) -> int:
        """Copies the trace of this process to the folder; returns its size in bytes."""
        size = 0
        for source in sorted(path for path in self._trace.rglob('*') if path.is_file()):
            target = self._folder / source.relative_to(self._trace).as_posix()
            make_folder(target.parent)
            with atomic_write(target) as partial:
                shutil.copyfile(source, partial)
            size += source.stat().st_size
        return size

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()
