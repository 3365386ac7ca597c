"""The report of a plan: memory by cause, roofline time, communication, cost.

    peak            model FLOPs / (devices x peak rate)
    roofline        the same, with attention at the rate that its head size allows (`core.hardware`), or at that of its
                    exponentials if they take longer
    executed        at the roofline, with what rematerialization and the kernels recompute; the backward kernel with a
                    core without work where the heads of a device do not divide over its cores
    exponentials    of `executed`, those of attention alone; they overlap with its products
    others          of `executed`, all but attention
    estimated       the same by the cycles that the compiler estimates: norms, elementwise operations and copies too
    communication   bytes sent / rate of one link, or of that between the devices of a package (v7x), which share its
                    links; it may overlap with computation

A phase needs the memory of what is resident and of its largest program: temporaries, results, code, and the arguments
that are not resident. All bytes and times are per JAX device; a v7x chip is two devices.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

from fv_jax.core.hardware import Chip
from fv_jax.planning.compiling import CompiledProgram, CompileOutOfMemory, compile_ahead
from fv_jax.planning.flops import BACKWARD_PRODUCTS, FORWARD_PRODUCTS, Flops
from fv_jax.planning.programs import Phase, PlannedProgram
from fv_jax.planning.slices import Slice

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a training step or of a batch of samples; the module says what each is."""

    peak: float
    roofline: float
    executed: float
    exponentials: float = 0.0
    others: float = 0.0
    estimated: float = 0.0
    communication: float = 0.0

    def __add__(self, other: 'Times') -> 'Times':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Times(*(a + b for a, b in pairs))


def compute_times(
    flops: Flops, recompute: Flops, chip: Chip, devices: int, head_dim: int, heads: int | None = None
) -> Times:
    """Computes the times of computation alone.

    Args:
      flops: of the model, over all devices.
      recompute: what is executed in addition.
      chip: the data sheet of a device.
      devices: that share the work.
      head_dim: the size of an attention head.
      heads: of attention on a device, times its examples, in training; None without a backward pass.
    """
    rate, attention = devices * chip.flops, devices * chip.attention_flops(head_dim)
    exponentials = devices * chip.exponentials
    slower = 1.0
    if heads is not None:
        backward = BACKWARD_PRODUCTS / (FORWARD_PRODUCTS + BACKWARD_PRODUCTS)
        slower += backward * (1 / chip.core_share(heads) - 1)

    def bounded(work: Flops, factor: float = 1.0) -> float:
        softmax = max(work.attention / attention, work.exponentials / exponentials)
        return (work.linear + work.vae) / rate + softmax * factor

    executed = flops + recompute
    return Times(
        flops.total / rate,
        bounded(flops),
        bounded(executed, slower),
        executed.exponentials / exponentials,
        (executed.linear + executed.vae) / rate,
    )


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """A program of a phase.

    Attributes:
      runs: in a training step, or for a batch of samples.
      flops, times: of all runs.
      compiled: the result of compiling it; None for a chip without an ahead-of-time compiler.
      transient_bytes: per device, in addition to what is resident; estimated by formula if it was not compiled.
    """

    name: str
    runs: int
    flops: Flops
    times: Times
    compiled: CompiledProgram | CompileOutOfMemory | None
    transient_bytes: float


@dataclasses.dataclass(frozen=True)
class PhaseReport:
    """A phase: programs that share their resident memory.

    Attributes:
      batch_size: the global number of clips, or of texts.
      devices: that the phase occupies.
      resident: bytes per device by cause.
      size: of an example, for display.
      mesh: what it runs on, for display.
    """

    name: str
    batch_size: int
    devices: int
    resident: dict[str, float]
    programs: tuple[ProgramReport, ...]
    size: str
    mesh: str

    @property
    def largest_program(self) -> ProgramReport:
        """The program with the most transient memory."""
        return max(self.programs, key=lambda program: program.transient_bytes)

    @property
    def peak_bytes(self) -> float:
        """Resident bytes and those of the largest program, per device."""
        return self.memory_of(self.programs)

    @property
    def times(self) -> Times:
        return sum_times(self.programs)

    def memory_of(self, programs: Iterable[ProgramReport]) -> float:
        """Computes the bytes per device while one of these programs of the phase runs."""
        return sum(self.resident.values()) + max(program.transient_bytes for program in programs)

    def fits(self, chip: Chip) -> bool:
        """Returns whether the phase fits the memory of a device, and the compiler refused no program."""
        return self.peak_bytes <= chip.memory and not any(
            isinstance(i.compiled, CompileOutOfMemory) for i in self.programs
        )


def sum_times(programs: Iterable[ProgramReport]) -> Times:
    """Adds up the times of programs."""
    return sum((program.times for program in programs), Times(0, 0, 0))


def compile_phases(phases: Iterable[Phase], topology: Slice) -> list[PhaseReport]:
    """Compiles the programs of phases for a topology, each once; those for GPUs are estimated by formula.

    Args:
      phases: the phases.
      topology: the slice.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed, other than for lack of memory.
    """
    compiled: dict[Callable, CompiledProgram | CompileOutOfMemory] = {}

    def report(phase: Phase, program: PlannedProgram) -> ProgramReport:
        if topology.libtpu_name is not None and program.lower not in compiled:
            log.info(f'{phase.name}: compiling {program.name}')
            compiled[program.lower] = compile_ahead(program.lower, phase.devices, topology.chip.package_devices)
        return _report_program(program, phase.head_dim, compiled.get(program.lower), topology)

    return [
        PhaseReport(
            phase.name,
            phase.batch_size,
            phase.devices,
            phase.resident,
            tuple(report(phase, program) for program in phase.programs),
            phase.size,
            phase.mesh,
        )
        for phase in phases
    ]


def executed_seconds(phase: Phase, topology: Slice, head_dim: int) -> float:
    """Computes the executed time of a phase if its attention had heads of size `head_dim`, in seconds."""

    def resize_heads(work: Flops) -> Flops:
        return dataclasses.replace(work, exponentials=work.exponentials * phase.head_dim / head_dim)

    def seconds(each: PlannedProgram) -> float:
        work = (resize_heads(flops) * each.runs for flops in (each.flops, each.recompute))
        return compute_times(*work, topology.chip, each.devices, head_dim).executed

    return sum(map(seconds, phase.programs))


def _report_program(
    program: PlannedProgram, head_dim: int, compiled: CompiledProgram | CompileOutOfMemory | None, topology: Slice
) -> ProgramReport:
    flops, recompute = program.flops * program.runs, program.recompute * program.runs
    times = compute_times(flops, recompute, topology.chip, program.devices, head_dim, program.heads)
    if isinstance(compiled, CompiledProgram):
        times = dataclasses.replace(
            times,
            communication=program.runs
            * topology.chip.communication_seconds(compiled.traffic.link_bytes, compiled.traffic.package_bytes),
            estimated=program.runs * compiled.cycles / topology.chip.clock,
        )
    return ProgramReport(program.name, program.runs, flops, times, compiled, transient_bytes(program, compiled))


def transient_bytes(program: PlannedProgram, compiled: CompiledProgram | CompileOutOfMemory | None) -> float:
    """Computes the bytes per device of a program beside what is resident; by formula if it was not compiled."""
    if compiled is None:
        return program.estimated_bytes
    if isinstance(compiled, CompileOutOfMemory):
        return compiled.required_bytes
    arguments = compiled.argument_bytes - program.resident_argument_bytes
    return arguments + compiled.temp_bytes + compiled.output_bytes + compiled.code_bytes


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a plan.

    Attributes:
      topology: the slice.
      phases: of a training step, or of sampling, in the order in which they run.
      notes: assumptions, and what is not included.
    """

    topology: Slice
    phases: tuple[PhaseReport, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return all(phase.fits(self.topology.chip) for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Converts the report to JSON values, in bytes, seconds and FLOPs."""
        chip = self.topology.chip
        return {
            'topology': str(self.topology),
            'chips': self.topology.chips,
            'devices': self.topology.devices,
            'memory_bytes': chip.memory,
            'fits': self.fits,
            'notes': list(self.notes),
            'phases': [_phase_dict(phase, self.topology) for phase in self.phases],
        }


def chip_seconds(phase: PhaseReport, topology: Slice) -> float:
    """Computes the executed time of a step or a batch of samples, times the chips that it occupies."""
    return phase.times.executed * phase.devices * topology.chips / topology.devices


def _phase_dict(phase: PhaseReport, topology: Slice) -> dict[str, Any]:
    return {
        'name': phase.name,
        'size': phase.size,
        'mesh': phase.mesh,
        'batch_size': phase.batch_size,
        'fits': phase.fits(topology.chip),
        'peak_bytes': phase.peak_bytes,
        'resident_bytes': phase.resident,
        'times': dataclasses.asdict(phase.times),
        'chip_seconds': chip_seconds(phase, topology),
        'programs': [
            {
                'name': program.name,
                'runs': program.runs,
                'transient_bytes': program.transient_bytes,
                'flops': dataclasses.asdict(program.flops) | {'total': program.flops.total},
                'times': dataclasses.asdict(program.times),
                'out_of_memory': isinstance(program.compiled, CompileOutOfMemory),
                'compiled': None if program.compiled is None else dataclasses.asdict(program.compiled),
            }
            for program in phase.programs
        ],
    }
