"""Where a run's time goes, by cause, and how fast it is.

start       everything before the loop
data        waiting for a batch, where the device had nothing left to do
compile     the first step of each shape
step        steps of training; what the loop does beside them is hidden behind the device's work
checkpoint  saving and restoring
evaluation  evaluations, their compilation among it
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

from fv_jax.core import throughput
from fv_jax.core.throughput import Work

Cause = Literal['start', 'data', 'compile', 'step', 'checkpoint', 'evaluation']
CAUSES: tuple[Cause, ...] = ('step', 'data', 'compile', 'checkpoint', 'evaluation', 'start')


class Goodput:
    """Time is always counted for one cause, the current one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        # Read by the watchdog's thread: set at once, as one.
        self.current: tuple[Cause, float] = ('start', clock())

    def turn_to(self, cause: Cause) -> None:
        """From now on."""
        before, since = self.current
        now = self._clock()
        self._seconds[before] += now - since
        self.current = (cause, now)

    def moved(self) -> None:
        """Something has come forward, under the same cause."""
        self.turn_to(self.current[0])

    def unmoved(self) -> tuple[Cause, float]:
        """The current cause, and the seconds that it has been current without anything coming forward."""
        cause, since = self.current
        return cause, self._clock() - since

    @contextlib.contextmanager
    def during(self, cause: Cause) -> Iterator[None]:
        before = self.current[0]
        self.turn_to(cause)
        try:
            yield
        finally:
            self.turn_to(before)

    @contextlib.contextmanager
    def waiting(self, hidden: Callable[[], bool]) -> Iterator[None]:
        """For data. hidden: asked afterwards, whether the device was still at work; then it is a step's time."""
        before, data = self.current[0], self._seconds['data']
        self.turn_to('data')
        try:
            yield
        finally:
            self.turn_to(before)
            if hidden():
                self._seconds['step'] += self._seconds['data'] - data
                self._seconds['data'] = data

    def seconds(self) -> dict[Cause, float]:
        """Until now, by cause."""
        self.moved()
        return dict(self._seconds)

    def shares(self) -> dict[str, float]:
        """`goodput/CAUSE`: its share of all the time until now; `goodput/seconds`: all of it."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {f'goodput/{cause}': value / max(total, 1e-9) for cause, value in seconds.items()} | {
            'goodput/seconds': total
        }


def goodput_line(step: int, shares: dict[str, float]) -> str:
    """One readable line."""
    said = '  '.join(f'{cause} {shares[f"goodput/{cause}"]:.1%}' for cause in CAUSES)
    return f'time until step {step}: {said}  of {shares["goodput/seconds"]:.0f} s'


class Rate:
    """How fast the last few steps were, pauses taken out; the first step, which compiles, is not counted."""

    def __init__(self, window: int = 20):
        self._window = window
        self._ticks: list[tuple[float, int, Work | None]] = []
        self._paused = 0.0

    def tick(self, rows: int, work: Work | None = None) -> dict[str, float]:
        """Called after each step, of so many rows. `steps_per_s`, `clips_per_s` and, where the work is known, what
        `core/throughput` says of it; nothing after the first.
        """
        now = time.perf_counter() - self._paused
        self._ticks = [*self._ticks, (now, rows, work)][-self._window - 1 :]
        _, *steps = self._ticks
        if not steps:
            return {}
        seconds = max(now - self._ticks[0][0], 1e-9)
        rates = {'steps_per_s': len(steps) / seconds, 'clips_per_s': sum(rows for _, rows, _ in steps) / seconds}
        done = [work for *_, work in steps if work is not None]
        return rates | (throughput.figures(sum(done[1:], done[0]), seconds) if len(done) == len(steps) else {})

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
