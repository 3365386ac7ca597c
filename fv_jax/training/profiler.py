"""A trace of a few steps, for xprof (`pip install xprof; xprof DIR/profile`)."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fv_jax.core.config import ConfigError

FOLDER = 'profile'  # in a run's folder
MOST_STEPS = 20  # a trace grows by megabytes a step


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """From the first to the last, both with."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> 'ProfileSteps':
        """'10:13' or '10'. Raises ConfigError."""
        match = re.fullmatch(r'(\d+)(?::(\d+))?', text)
        if match is None:
            raise ConfigError(f'--profile-steps={text}: must be FIRST:LAST, as in 10:13')
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last < first + MOST_STEPS:
            raise ConfigError(f'--profile-steps={text}: must be from 1 on, upwards, at most {MOST_STEPS} steps')
        return cls(first, last)


class Profiler:
    """Called before each step; `close` ends a trace that is still open."""

    def __init__(self, steps: ProfileSteps | None, folder: Path, say: Callable[[str], None]):
        self._steps, self._folder, self._say = steps, folder, say
        self._open = False

    def __call__(self, step: int, before: Any) -> None:
        """step: the one that is about to be started. before: what the one before it gives back."""
        if self._steps is None:
            return
        if self._open and step > self._steps.last:
            jax.block_until_ready(before)
            self.close()
        if not self._open and step == self._steps.first:
            jax.block_until_ready(before)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be an event, gigabytes of them
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            size = sum(path.stat().st_size for path in self._folder.rglob('*') if path.is_file())
            self._say(
                f'profile of steps {self._steps.first} to {self._steps.last}: {self._folder} ({size / 1e6:.1f} MB)'
            )

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()
