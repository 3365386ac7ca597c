"""The speed ledger: how fast work was done, beside what the chip could do.

    tokens_per_s      video tokens, over all devices
    tflops_per_chip   the model's own FLOPs / (devices x seconds); what is computed again does not count
    mfu               the same, of the chip's peak rate
    roofline_share    seconds that the chip's rates allow, attention at the ceiling of its head size / seconds
    peak_memory_gib   the most that a device of this process has held

What is not known is left out: a CPU's peak, memory where the device does not report it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax

from fv_jax.core.hardware import GIB

NAMES = ('tokens_per_s', 'tflops_per_chip', 'mfu', 'roofline_share', 'peak_memory_gib')
_COMPILING = '/jax/core/compile/backend_compile_duration'


@dataclasses.dataclass(frozen=True)
class Work:
    """tokens: of video. flops: the model's own, over all devices. peak, ceiling: seconds that it takes at the chip's
    rate, and at the one that its heads allow; None where the chip is not known.
    """

    tokens: int
    flops: float
    devices: int
    peak: float | None = None
    ceiling: float | None = None

    def __add__(self, other: 'Work') -> 'Work':
        def both(mine: float | None, theirs: float | None) -> float | None:
            return None if mine is None or theirs is None else mine + theirs

        peak, ceiling = both(self.peak, other.peak), both(self.ceiling, other.ceiling)
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.devices, peak, ceiling)


def figures(work: Work, seconds: float) -> dict[str, float]:
    """Of work that took so long, by the names above, without memory."""
    found = {
        'tokens_per_s': work.tokens / seconds,
        'tflops_per_chip': work.flops / (work.devices * seconds) / 1e12,
        'mfu': None if work.peak is None else work.peak / seconds,
        'roofline_share': None if work.ceiling is None else work.ceiling / seconds,
    }
    return {name: value for name, value in found.items() if value is not None}


def peak_memory() -> dict[str, float]:
    """`peak_memory_gib`, where this process's devices report it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = [each['peak_bytes_in_use'] for each in stats if 'peak_bytes_in_use' in each]
    return {'peak_memory_gib': max(found) / GIB} if found else {}


def line(values: dict[str, float]) -> str:
    """The figures that there are, for a person."""
    formats = {
        'tokens_per_s': '{:,.0f} tokens/s',
        'tflops_per_chip': '{:.3g} TFLOP/s a chip',
        'mfu': 'MFU {:.1%}',
        'roofline_share': '{:.1%} of the roofline',
        'peak_memory_gib': 'at most {:.2f} GiB a chip',
    }
    return ', '.join(text.format(values[name]) for name, text in formats.items() if name in values)


class Clock:
    """Seconds of running, and of compiling, by name."""

    def __init__(self):
        self.running_s: dict[str, float] = {}
        self.compiling_s: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """What is done within, up to its results being there, counts for `name`."""
        compiling = 0.0

        def listen(event: str, duration: float, **_: object) -> None:
            nonlocal compiling
            compiling += duration * (event == _COMPILING)

        jax.monitoring.register_event_duration_secs_listener(listen)
        began = time.monotonic()
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
            running = max(time.monotonic() - began - compiling, 1e-9)
            self.running_s[name] = self.running_s.get(name, 0.0) + running
            self.compiling_s[name] = self.compiling_s.get(name, 0.0) + compiling
