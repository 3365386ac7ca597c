"""The figures of a plan: bytes a chip by cause, time at the roofline, traffic, cost.

    time at peak      FLOPs / (devices x rate)
    time at ceiling   the same, attention at the share of the rate that its head size allows (`core.chips`)
    executed          at the ceiling, with what rematerialisation and the kernels compute again
    traffic           bytes sent / rate of one link; it may hide behind the arithmetic

A phase needs what stays in memory and the largest of its executables: temporaries, results, code, and the arguments
that do not stay. All bytes and all times are a chip's; a v7x counts as two, as in JAX.
"""

import dataclasses
from typing import Any

from fv_jax.core.hardware import Chip
from fv_jax.planning.compiling import Compiled, TooLarge, compile_ahead
from fv_jax.planning.flops import Flops
from fv_jax.planning.programs import Executable, Phase
from fv_jax.planning.slices import Slice


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds, of so many runs as a step, or a batch of samples, has."""

    peak: float
    ceiling: float
    executed: float
    traffic: float = 0.0

    def __add__(self, other: 'Times') -> 'Times':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Times(*(a + b for a, b in pairs))


def roofline(flops: Flops, again: Flops, chip: Chip, devices: int, head_dim: int) -> Times:
    """Of the arithmetic alone."""
    rate, attention = devices * chip.flops, devices * chip.attention_flops(head_dim)

    def bounded(work: Flops) -> float:
        return (work.linear + work.vae) / rate + work.attention / attention

    return Times(flops.total / rate, bounded(flops), bounded(flops + again))


@dataclasses.dataclass(frozen=True)
class Item:
    """An executable. compiled: None where nothing compiles for the chip. beside: bytes a chip that it needs beside what
    stays in memory; by formula where it was not compiled.
    """

    name: str
    runs: int
    flops: Flops
    times: Times
    compiled: Compiled | TooLarge | None
    beside: float


@dataclasses.dataclass(frozen=True)
class PhaseReport:
    """devices: over which it is spread. rows: clips of a batch, or texts."""

    name: str
    rows: int
    devices: int
    resident: dict[str, float]
    items: tuple[Item, ...]

    @property
    def largest(self) -> Item:
        """The executable that needs the most."""
        return max(self.items, key=lambda item: item.beside)

    @property
    def needed(self) -> float:
        """Bytes a chip."""
        return sum(self.resident.values()) + self.largest.beside

    @property
    def times(self) -> Times:
        return sum((item.times for item in self.items), Times(0, 0, 0))

    def fits(self, chip: Chip) -> bool:
        return self.needed <= chip.memory and not any(isinstance(i.compiled, TooLarge) for i in self.items)


def measured(phase: Phase, where: Slice, devices: int) -> PhaseReport:
    """Compiles the phase's executables, where something compiles for the slice. devices: that the phase runs on."""
    items = tuple(_measured(each, phase, where, devices) for each in phase.executables)
    return PhaseReport(phase.name, phase.rows, devices, phase.resident, items)


def executed(phase: Phase, where: Slice, devices: int, head_dim: int) -> float:
    """Seconds of the phase as executed at the ceiling, were its attention in heads of this size."""

    def of(each: Executable) -> float:
        work = each.flops * each.runs, each.again * each.runs
        return roofline(*work, where.chip, devices, head_dim).executed

    return sum(map(of, phase.executables))


def _measured(executable: Executable, phase: Phase, where: Slice, devices: int) -> Item:
    flops, again = executable.flops * executable.runs, executable.again * executable.runs
    times = roofline(flops, again, where.chip, devices, phase.head_dim)
    if where.topology is None:
        return Item(executable.name, executable.runs, flops, times, None, executable.guess)
    compiled = compile_ahead(executable.lower, devices)
    if isinstance(compiled, TooLarge):
        return Item(executable.name, executable.runs, flops, times, compiled, compiled.needed)
    times = dataclasses.replace(times, traffic=executable.runs * compiled.traffic.total / where.chip.link_rate)
    beside = compiled.arguments - executable.known + compiled.temporaries + compiled.fresh + compiled.code
    return Item(executable.name, executable.runs, flops, times, compiled, beside)


@dataclasses.dataclass(frozen=True)
class Report:
    """A plan. size: of the clips. notes: what the figures leave out."""

    where: Slice
    size: str
    mesh: str
    phases: tuple[PhaseReport, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return all(phase.fits(self.where.chip) for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, seconds and FLOPs."""
        chip = self.where.chip
        return {
            'topology': str(self.where),
            'chips': self.where.chips,
            'devices': self.where.devices,
            'memory': chip.memory,
            'size': self.size,
            'mesh': self.mesh,
            'fits': self.fits,
            'notes': list(self.notes),
            'phases': [_phase_dict(phase, self.where) for phase in self.phases],
        }


def chip_seconds(phase: PhaseReport, where: Slice) -> float:
    """Of a step or a batch of samples, as executed at the ceiling; whole chips are paid for."""
    return phase.times.executed * phase.devices * where.chips / where.devices


def _phase_dict(phase: PhaseReport, where: Slice) -> dict[str, Any]:
    return {
        'name': phase.name,
        'rows': phase.rows,
        'fits': phase.fits(where.chip),
        'needed': phase.needed,
        'resident': phase.resident,
        'times': dataclasses.asdict(phase.times),
        'chip_seconds': chip_seconds(phase, where),
        'executables': [
            {
                'name': item.name,
                'runs': item.runs,
                'beside': item.beside,
                'flops': dataclasses.asdict(item.flops) | {'total': item.flops.total},
                'times': dataclasses.asdict(item.times),
                'too_large': isinstance(item.compiled, TooLarge),
                'compiled': None if item.compiled is None else dataclasses.asdict(item.compiled),
            }
            for item in phase.items
        ],
    }
