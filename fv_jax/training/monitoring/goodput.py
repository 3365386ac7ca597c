"""Goodput: wall-clock accounting of a run by cause, and its step rate.

start       everything before the training loop
data        waiting for a batch while the device is idle
compile     the first step of each batch shape
step        training steps, with the host's work that overlaps with the device's
checkpoint  saving and restoring
evaluation  evaluations, their compilation included

Not ml-goodput-measurement: it keeps its records in Google Cloud; these are seconds of this process, saved with the run.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

from fv_jax.core import throughput
from fv_jax.core.throughput import StepCost

Cause = Literal['start', 'data', 'compile', 'step', 'checkpoint', 'evaluation']
CAUSES: tuple[Cause, ...] = ('step', 'data', 'compile', 'checkpoint', 'evaluation', 'start')


class Goodput:
    """Attributes the wall-clock time to one cause at a time, the current one; the first is 'start'."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        # The watchdog reads it from another thread: one assignment, so that the pair is always consistent.
        self.current: tuple[Cause, float] = ('start', clock())

    def switch_to(self, cause: Cause) -> None:
        """Starts to attribute time to `cause`."""
        before, since = self.current
        now = self._clock()
        self._seconds[before] += now - since
        self.current = (cause, now)

    def heartbeat(self) -> None:
        """Reports progress under the current cause, for the watchdog."""
        self.switch_to(self.current[0])

    def idle_time(self) -> tuple[Cause, float]:
        """Returns the current cause, and the seconds since it began or since its last heartbeat."""
        cause, since = self.current
        return cause, self._clock() - since

    @contextlib.contextmanager
    def track(self, cause: Cause) -> Iterator[None]:
        """A context whose time is attributed to `cause`; afterwards the cause before it is the current one again."""
        before = self.current[0]
        self.switch_to(cause)
        try:
            yield
        finally:
            self.switch_to(before)

    @contextlib.contextmanager
    def track_data_wait(self, device_is_busy: Callable[[], bool]) -> Iterator[None]:
        """A context in which the run waits for a batch.

        device_is_busy: called at the end of it. If the device is still computing then, the wait was hidden behind it,
        and counts as 'step'.
        """
        before, data = self.current[0], self._seconds['data']
        self.switch_to('data')
        try:
            yield
        finally:
            self.switch_to(before)
            if device_is_busy():
                self._seconds['step'] += self._seconds['data'] - data
                self._seconds['data'] = data

    def seconds(self) -> dict[Cause, float]:
        """Returns the seconds so far by cause."""
        self.heartbeat()
        return dict(self._seconds)

    def fractions(self) -> dict[str, float]:
        """Returns `goodput/CAUSE`, its fraction of the time so far, and `goodput/seconds`, that time."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {f'goodput/{cause}': value / max(total, 1e-9) for cause, value in seconds.items()} | {
            'goodput/seconds': total
        }


def goodput_line(step: int, row: dict[str, float]) -> str:
    """Formats what `Goodput.fractions` returns, and the metrics of remote shards if there are any, as one line."""
    parts = '  '.join(f'{cause} {row[f"goodput/{cause}"]:.1%}' for cause in CAUSES)
    line = f'goodput at step {step}: {parts}  of {row["goodput/seconds"]:.0f} s'
    if 'goodput/shard_hit_rate' not in row:
        return line
    hits, waited, fetched = (row[f'goodput/shard_{name}'] for name in ('hit_rate', 'wait_seconds', 'gigabytes'))
    return f'{line}; shards: {hits:.1%} of the reads without waiting, {waited:.0f} s waited, {fetched:.3g} GB fetched'


class Rate:
    """Mean rate of the last `window` steps, without pauses and without the first step, which compiles."""

    def __init__(self, window: int = 20):
        self._window = window
        self._ticks: list[tuple[float, int, StepCost | None]] = []
        self._paused = 0.0

    def tick(self, num_examples: int, cost: StepCost | None = None) -> dict[str, float]:
        """Counts a step that has just ended.

        Args:
          num_examples: clips in its batch.
          cost: what it computed, where that is known.

        Returns:
          `steps_per_s`, `clips_per_s` and, where the cost of every step in the window is known, the metrics of
          `core/throughput`; nothing at the first step.
        """
        now = time.perf_counter() - self._paused
        self._ticks = [*self._ticks, (now, num_examples, cost)][-self._window - 1 :]
        _, *steps = self._ticks
        if not steps:
            return {}
        seconds = max(now - self._ticks[0][0], 1e-9)
        rates = {'steps_per_s': len(steps) / seconds, 'clips_per_s': sum(count for _, count, _ in steps) / seconds}
        costs = [cost for *_, cost in steps if cost is not None]
        if len(costs) < len(steps):
            return rates
        return rates | throughput.throughput_metrics(sum(costs[1:], costs[0]), seconds)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose time does not count."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
