"""A plan as text: a table for each phase, and what to change where it does not fit."""

from collections.abc import Iterator

from fv_jax.core.hardware import GIB
from fv_jax.planning.compiling import Compiled, TooLarge, gib
from fv_jax.planning.report import Item, PhaseReport, Report, chip_seconds
from fv_jax.planning.slices import Slice

_UNIT = {'training': 'step', 'sampling': 'batch of samples', 'text': 'batch of texts'}


def lines(report: Report) -> Iterator[str]:
    """The whole plan."""
    where, chip = report.where, report.where.chip
    devices = f', {where.devices} devices' if where.devices != where.chips else ''
    per = 'a device' if devices else 'a chip'
    yield f'{where}: {where.chips} chip(s){devices}, {gib(chip.memory)} {per}; {report.mesh}; clips of {report.size}'
    for phase in report.phases:
        yield ''
        yield from _phase(phase, where)
    yield ''
    yield from (f'note: {note}' for note in report.notes)


def _phase(phase: PhaseReport, where: Slice) -> Iterator[str]:
    chip = where.chip
    verdict = 'fits' if phase.fits(chip) else 'DOES NOT FIT'
    at_least = '' if phase.fits(chip) or not _refused(phase) else 'at least '
    yield f'{phase.name}, {phase.rows} row(s) a batch: {at_least}{gib(phase.needed)} of {gib(chip.memory)}: {verdict}'
    stays = ', '.join(f'{name} {size / GIB:.2f}' for name, size in phase.resident.items())
    yield f'  stays in memory (GiB): {stays}'
    yield (
        f'  {"executable":24} {"runs":>4} {"beside":>8} {"temp":>8} {"compile":>8} {"attention":>10} {"linear":>9} '
        f'{"VAE":>9} {"peak":>8} {"ceiling":>8} {"executed":>8} {"traffic":>8}'
    )
    yield (
        f'  {"":24} {"":4} {"GiB":>8} {"GiB":>8} {"s":>8} {"TFLOP":>10} {"TFLOP":>9} {"TFLOP":>9} {"s":>8} {"s":>8} '
        f'{"s":>8} {"s":>8}'
    )
    for item in phase.items:
        yield _row(item)
    yield from _traffic(phase)
    times, unit = phase.times, _UNIT[phase.name]
    share = f', traffic {times.traffic / times.executed:.0%} of it' if times.traffic else ''
    yield (
        f'  a {unit}: {times.executed:.3g} s at the ceiling with what is computed again ({times.peak:.3g} s of the '
        f"model's own at peak){share}; {chip_seconds(phase, where):.3g} chip-seconds, "
        f'{chip_seconds(phase, where) / phase.rows:.3g} a row'
    )


def _refused(phase: PhaseReport) -> bool:
    return any(isinstance(item.compiled, TooLarge) for item in phase.items)


def _row(item: Item) -> str:
    beside = temporaries = seconds = '-'
    if isinstance(item.compiled, Compiled):
        beside, temporaries = f'{item.beside / GIB:.2f}', f'{item.compiled.temporaries / GIB:.2f}'
    elif isinstance(item.compiled, TooLarge):
        beside = f'>{item.beside / GIB:.2f}'
    else:
        beside = f'~{item.beside / GIB:.2f}'
    if item.compiled is not None:
        seconds = f'{item.compiled.seconds:.0f}'
    flops, times = item.flops, item.times
    work = (f'{x / 1e12:.4g}' for x in (flops.attention, flops.linear, flops.vae))
    attention, linear, vae = work
    spent = ' '.join(f'{x:8.3g}' for x in (times.peak, times.ceiling, times.executed, times.traffic))
    return (
        f'  {item.name:24} {item.runs:4} {beside:>8} {temporaries:>8} {seconds:>8} {attention:>10} {linear:>9} '
        f'{vae:>9} {spent}'
    )


def _traffic(phase: PhaseReport) -> Iterator[str]:
    for item in phase.items:
        if isinstance(item.compiled, Compiled) and item.compiled.traffic.total:
            kinds = ', '.join(f'{kind} {size / GIB:.3g}' for kind, size in item.compiled.traffic.sent.items())
            yield f'  {item.name} sends (GiB a chip and run): {kinds}'
            if item.compiled.traffic.unknown_loops:
                yield f'    {len(item.compiled.traffic.unknown_loops)} loop(s) of unknown length were counted once'
