"""Formats a plan as text: a table for each phase."""

import itertools
from collections.abc import Iterator

from fv_jax.core.hardware import GIB
from fv_jax.planning.compiling import CompiledProgram, CompileOutOfMemory, format_gib
from fv_jax.planning.report import PhaseReport, ProgramReport, Report, chip_seconds, sum_times
from fv_jax.planning.slices import Slice

TRAINING = 'training'


def format_report(report: Report) -> Iterator[str]:
    """Yields the lines of a report."""
    topology, chip = report.topology, report.topology.chip
    devices = f', {topology.devices} devices' if topology.devices != topology.chips else ''
    memory = f'{format_gib(chip.memory)} per {"device" if devices else "chip"}'
    yield f'{topology}: {topology.chips} chip(s){devices}, {memory}'
    for phase in report.phases:
        yield ''
        yield from _format_phase(phase, topology)
    yield ''
    if sampling := [phase for phase in report.phases if phase.name != TRAINING]:
        yield from _format_sampling(sampling, topology)
        yield ''
    yield from (f'note: {note}' for note in report.notes)


def _format_phase(phase: PhaseReport, topology: Slice) -> Iterator[str]:
    chip = topology.chip
    verdict = 'fits' if phase.fits(chip) else 'DOES NOT FIT'
    at_least = '' if phase.fits(chip) or not _has_refused_program(phase) else 'at least '
    used = f'{at_least}{format_gib(phase.peak_bytes)} of {format_gib(chip.memory)}'
    yield f'{phase.name}, {phase.batch_size} of {phase.size}, on {phase.mesh}: {used}: {verdict}'
    resident = ', '.join(f'{name} {size / GIB:.2f}' for name, size in phase.resident.items())
    yield f'  resident (GiB): {resident}'
    yield (
        f'  {"program":30} {"runs":>4} {"transient":>9} {"temp":>8} {"compile":>8} {"attention":>10} {"linear":>9} '
        f'{"VAE":>9} {"peak":>8} {"roofline":>8} {"executed":>8} {"comm":>8}'
    )
    yield (
        f'  {"":30} {"":4} {"GiB":>9} {"GiB":>8} {"s":>8} {"TFLOP":>10} {"TFLOP":>9} {"TFLOP":>9} {"s":>8} {"s":>8} '
        f'{"s":>8} {"s":>8}'
    )
    for program in phase.programs:
        yield _format_program(program)
    yield from _format_communication(phase)
    yield from _format_estimates(phase)
    times, unit = phase.times, 'step' if phase.name == TRAINING else 'batch'
    share = f', communication {times.communication / times.executed:.0%} of it' if times.communication else ''
    if times.exponentials:
        share = f', the exponentials of attention {times.exponentials / times.executed:.0%}{share}'
    yield (
        f'  a {unit}: {times.executed:.3g} s at the roofline with recomputation ({times.peak:.3g} s for model '
        f'FLOPs at peak){share}; {chip_seconds(phase, topology):.3g} chip-seconds, '
        f'{chip_seconds(phase, topology) / phase.batch_size:.3g} per example'
    )


def _format_sampling(phases: list[PhaseReport], topology: Slice) -> Iterator[str]:
    """Yields a table of all that sampling runs, from text to video; programs that differ in their shapes are a line."""
    seconds, sent = (sum(getattr(phase.times, name) for phase in phases) for name in ('roofline', 'communication'))
    memory = max(phase.peak_bytes for phase in phases)
    yield 'sampling, from text to video:'
    yield f'  {"phase":18} {"program":20} {"runs":>4} {"roofline":>9} {"share":>6} {"comm":>8} {"memory":>8}'
    yield f'  {"":18} {"":20} {"":4} {"s":>9} {"":6} {"s":>8} {"GiB":>8}'
    for phase in phases:
        for name, programs in itertools.groupby(phase.programs, lambda program: program.name.partition(',')[0]):
            group = list(programs)
            times, used = sum_times(group), phase.memory_of(group)
            yield (
                f'  {phase.name:18} {name:20} {sum(p.runs for p in group):4} {times.roofline:9.3g} '
                f'{times.roofline / seconds:6.1%} {times.communication:8.3g} {f"{_mark(group)}{used / GIB:.2f}":>8}'
            )
    fits = 'fits' if all(phase.fits(topology.chip) for phase in phases) else 'DOES NOT FIT'
    yield (
        f'  in all {seconds:.3g} s at the roofline, communication {sent:.3g} s, {memory / GIB:.2f} of '
        f'{format_gib(topology.chip.memory)}: {fits}'
    )


def _mark(programs: list[ProgramReport]) -> str:
    """Returns what precedes a number of bytes that is a lower bound, or was not compiled."""
    if any(isinstance(program.compiled, CompileOutOfMemory) for program in programs):
        return '>'
    return '~' if any(program.compiled is None for program in programs) else ''


def _has_refused_program(phase: PhaseReport) -> bool:
    return any(isinstance(program.compiled, CompileOutOfMemory) for program in phase.programs)


def _format_program(program: ProgramReport) -> str:
    transient, temporaries, seconds = f'{_mark([program])}{program.transient_bytes / GIB:.2f}', '-', '-'
    if isinstance(program.compiled, CompiledProgram):
        temporaries = f'{program.compiled.temp_bytes / GIB:.2f}'
    if program.compiled is not None:
        seconds = f'{program.compiled.seconds:.0f}'
    flops, times = program.flops, program.times
    attention, linear, vae = (f'{x / 1e12:.4g}' for x in (flops.attention, flops.linear, flops.vae))
    seconds_by_kind = ' '.join(f'{x:8.3g}' for x in (times.peak, times.roofline, times.executed, times.communication))
    return (
        f'  {program.name:30} {program.runs:4} {transient:>9} {temporaries:>8} {seconds:>8} {attention:>10} '
        f'{linear:>9} {vae:>9} {seconds_by_kind}'
    )


def _format_communication(phase: PhaseReport) -> Iterator[str]:
    for program in phase.programs:
        if isinstance(program.compiled, CompiledProgram) and program.compiled.traffic.total_bytes:
            kinds = ', '.join(f'{kind} {size / GIB:.3g}' for kind, size in program.compiled.traffic.sent_bytes.items())
            yield f'  {program.name} sends (GiB per device and run): {kinds}'
            if program.compiled.traffic.unknown_loops:
                loops = len(program.compiled.traffic.unknown_loops)
                yield f'    {loops} loop(s) of unknown trip count were counted once'


def _format_estimates(phase: PhaseReport) -> Iterator[str]:
    for program in phase.programs:
        if program.times.estimated:
            yield (
                f'  {program.name}, all but the kernels of attention: {program.times.others:.3g} s at the roofline, '
                f"{program.times.estimated:.3g} s by the compiler's estimate"
            )
