"""Throughput metrics: how fast something was computed, relative to what the chip can do.

    tokens_per_s           video tokens per second, over all devices
    tflops_per_chip        model FLOPs / (devices x seconds), in 10^12; recomputation does not count
    mfu                    model FLOPs utilization: the same relative to the chip's peak rate (arXiv:2204.02311)
    roofline_utilization   roofline seconds / seconds; the roofline has attention at the rate of its head size
    peak_memory_gib        the largest memory use of a device of this process so far

Metrics that are not known are omitted: the peak rate of a CPU, memory where the device does not report it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax

from fv_jax.core.hardware import GIB

_COMPILING = '/jax/core/compile/backend_compile_duration'


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a training step, or of any other computation.

    Attributes:
      tokens: number of video tokens.
      flops: model FLOPs without recomputation, over all devices.
      devices: number of devices that share it.
      peak_seconds: time at the chip's peak rate; None for an unknown chip.
      roofline_seconds: the same with attention at the rate that its head size allows.
    """

    tokens: int
    flops: float
    devices: int
    peak_seconds: float | None = None
    roofline_seconds: float | None = None

    def __add__(self, other: 'StepCost') -> 'StepCost':
        def add(mine: float | None, theirs: float | None) -> float | None:
            return None if mine is None or theirs is None else mine + theirs

        return StepCost(
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.devices,
            add(self.peak_seconds, other.peak_seconds),
            add(self.roofline_seconds, other.roofline_seconds),
        )


def throughput_metrics(cost: StepCost, seconds: float) -> dict[str, float]:
    """Computes the metrics above, except for memory, of a computation of this cost that took `seconds`."""
    metrics = {
        'tokens_per_s': cost.tokens / seconds,
        'tflops_per_chip': cost.flops / (cost.devices * seconds) / 1e12,
        'mfu': None if cost.peak_seconds is None else cost.peak_seconds / seconds,
        'roofline_utilization': None if cost.roofline_seconds is None else cost.roofline_seconds / seconds,
    }
    return {name: value for name, value in metrics.items() if value is not None}


def peak_memory() -> dict[str, float]:
    """Returns `peak_memory_gib` of the devices of this process; nothing if they do not report it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = [each['peak_bytes_in_use'] for each in stats if 'peak_bytes_in_use' in each]
    return {'peak_memory_gib': max(found) / GIB} if found else {}


def format_metrics(values: dict[str, float]) -> str:
    """Formats those of the metrics above that are in `values`, as one line."""
    formats = {
        'tokens_per_s': '{:,.0f} tokens/s',
        'tflops_per_chip': '{:.3g} TFLOP/s per chip',
        'mfu': 'MFU {:.1%}',
        'roofline_utilization': '{:.1%} of the roofline',
        'peak_memory_gib': 'peak memory {:.2f} GiB per chip',
    }
    return ', '.join(text.format(values[name]) for name, text in formats.items() if name in values)


class Clock:
    """Accumulates seconds of running and of compiling, by name."""

    def __init__(self):
        self.running_s: dict[str, float] = {}
        self.compiling_s: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A context whose time is added to `name`. It must block on its results, as JAX dispatches asynchronously."""
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
