"""Formats a plan as text: a table for each phase."""

from collections.abc import Iterator

from fv_jax.core.hardware import GIB
from fv_jax.planning.compiling import CompiledProgram, CompileOutOfMemory, format_gib
from fv_jax.planning.report import PhaseReport, ProgramReport, Report, chip_seconds
from fv_jax.planning.slices import Slice

_UNIT = {'training': 'step', 'sampling': 'batch of samples', 'text': 'batch of texts'}
_EXAMPLE = {'training': 'clip', 'sampling': 'clip', 'text': 'text'}


def format_report(report: Report) -> Iterator[str]:
    """Yields the lines of a report."""
    topology, chip = report.topology, report.topology.chip
    devices = f', {topology.devices} devices' if topology.devices != topology.chips else ''
    memory = f'{format_gib(chip.memory)} per {"device" if devices else "chip"}'
    yield f'{topology}: {topology.chips} chip(s){devices}, {memory}; {report.mesh}; clips of {report.size}'
    for phase in report.phases:
        yield ''
        yield from _format_phase(phase, topology)
    yield ''
    yield from (f'note: {note}' for note in report.notes)


def _format_phase(phase: PhaseReport, topology: Slice) -> Iterator[str]:
    chip = topology.chip
    verdict = 'fits' if phase.fits(chip) else 'DOES NOT FIT'
    at_least = '' if phase.fits(chip) or not _has_refused_program(phase) else 'at least '
    used = f'{at_least}{format_gib(phase.peak_bytes)} of {format_gib(chip.memory)}'
    yield f'{phase.name}, batch size {phase.batch_size}: {used}: {verdict}'
    resident = ', '.join(f'{name} {size / GIB:.2f}' for name, size in phase.resident.items())
    yield f'  resident (GiB): {resident}'
    yield (
        f'  {"program":24} {"runs":>4} {"transient":>9} {"temp":>8} {"compile":>8} {"attention":>10} {"linear":>9} '
        f'{"VAE":>9} {"peak":>8} {"roofline":>8} {"executed":>8} {"comm":>8}'
    )
    yield (
        f'  {"":24} {"":4} {"GiB":>9} {"GiB":>8} {"s":>8} {"TFLOP":>10} {"TFLOP":>9} {"TFLOP":>9} {"s":>8} {"s":>8} '
        f'{"s":>8} {"s":>8}'
    )
    for program in phase.programs:
        yield _format_program(program)
    yield from _format_communication(phase)
    times, unit = phase.times, _UNIT[phase.name]
    share = f', communication {times.communication / times.executed:.0%} of it' if times.communication else ''
    yield (
        f'  a {unit}: {times.executed:.3g} s at the roofline with recomputation ({times.peak:.3g} s for model '
        f'FLOPs at peak){share}; {chip_seconds(phase, topology):.3g} chip-seconds, '
        f'{chip_seconds(phase, topology) / phase.batch_size:.3g} per {_EXAMPLE[phase.name]}'
    )


def _has_refused_program(phase: PhaseReport) -> bool:
    return any(isinstance(program.compiled, CompileOutOfMemory) for program in phase.programs)


def _format_program(program: ProgramReport) -> str:
    transient = temporaries = seconds = '-'
    if isinstance(program.compiled, CompiledProgram):
        transient, temporaries = f'{program.transient_bytes / GIB:.2f}', f'{program.compiled.temp_bytes / GIB:.2f}'
    elif isinstance(program.compiled, CompileOutOfMemory):
        transient = f'>{program.transient_bytes / GIB:.2f}'
    else:
        transient = f'~{program.transient_bytes / GIB:.2f}'
    if program.compiled is not None:
        seconds = f'{program.compiled.seconds:.0f}'
    flops, times = program.flops, program.times
    attention, linear, vae = (f'{x / 1e12:.4g}' for x in (flops.attention, flops.linear, flops.vae))
    seconds_by_kind = ' '.join(f'{x:8.3g}' for x in (times.peak, times.roofline, times.executed, times.communication))
    return (
        f'  {program.name:24} {program.runs:4} {transient:>9} {temporaries:>8} {seconds:>8} {attention:>10} '
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
