"""The report of an evaluation: from the content of `report.json` to the blocks of a page.

It begins with what was measured, and with how the networks compare with bilinear interpolation by the perceptual
metrics that have a reference: those without one can reward noise and false detail. Then come tables, charts against the
number of steps, every clip, what was not computed, and settings.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.core.report.blocks import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Figure,
    Heading,
    Level,
    Line,
    Mark,
    Point,
    Report,
    Table,
    Text,
    VideoComparison,
)
from fv_jax.data.video import decoding
from fv_jax.evaluation.report_values import (
    NOT_DEFINED,
    Metric,
    Outcome,
    find_best,
    find_outcome,
    join_words,
    read_metrics,
    read_number,
)

FORMAT = 1
BASELINE = 'bilinear'
# The metrics of the verdict; plain VMAF rewards sharpening.
PERCEPTUAL = ('lpips_alexnet', 'lpips_vgg16', 'dists', 'vmaf_neg')
CHARTED = ('psnr', *PERCEPTUAL)
_DIRECTIONS = {1: 'higher is better', -1: 'lower is better', 0: ''}
_MARKS = {Outcome.BETTER: Mark.BETTER, Outcome.WORSE: Mark.WORSE}


@dataclasses.dataclass(frozen=True)
class ClipMedia:
    """The files of a clip.

    Attributes:
      name: of the clip in `report.json`.
      strip: an image file with the middle frames and enlarged crops (`fv_jax.evaluation.strips`).
      videos: method -> mp4 file.
    """

    name: str
    strip: StoragePath
    videos: Mapping[str, StoragePath]


def build_report(data: Mapping[str, Any], media: Sequence[ClipMedia]) -> Report:
    """Builds the report of an evaluation.

    Args:
      data: the content of `report.json`.
      media: of all clips or of some.

    Raises:
      ValueError: another format, media of an unknown clip, or a video that cannot be read.
    """
    require(data['format'] == FORMAT, f'format {data["format"]} of a report is not known; this version reads {FORMAT}')
    names = [clip['name'] for clip in data['clips']]
    for clip in media:
        require(clip.name in names, f'{clip.name!r}: no such clip in the report; the clips are {names}')
    metrics = read_metrics(data)
    blocks = [
        Text(f'{describe_measurement(data)} {describe_verdict(data, metrics)}'.strip(), lead=True),
        *_summary(data, metrics),
        *_paired_differences(data, metrics),
        *_charts(data, metrics),
        *_clips(data, metrics, {clip.name: clip for clip in media}),
        *_not_computed(data),
        *_settings(data),
    ]
    return Report(data['title'], blocks)


def describe_measurement(data: Mapping[str, Any]) -> str:
    """Describes in a sentence or two which clips were measured and how they were degraded."""
    clips, settings = data['clips'], data['settings']
    number = f'{len(clips)} clip{"s" if len(clips) != 1 else ""}'
    parts = [
        f'{number} of {_range([clip["frames"]] for clip in clips)} frames at {_range(c["size"] for c in clips)} pixels'
    ]
    if inputs := [clip['input_size'] for clip in clips if clip.get('input_size')]:
        parts.append(f'enlarged from {_range(inputs)}')
    if settings.get('degradation'):
        parts.append(f'{settings["degradation"]} degradation')
    networks = {(m['checkpoint'], m['step']): None for m in data['methods'] if m['kind'] == 'network'}
    of = (
        f' Network: {join_words([f"{checkpoint} at step {step}" for checkpoint, step in networks])}.'
        if networks
        else ''
    )
    return f'{", ".join(parts)}; {len(data["methods"])} methods by {len(data["metrics"])} metrics.{of}'


def _range(values: Iterable[Sequence[int]]) -> str:
    """Formats numbers or sizes as '17', '192x288' or '192x288 to 1072x1920'."""
    ordered = sorted(set(map(tuple, values)))
    return ' to '.join('x'.join(map(str, value)) for value in dict.fromkeys([ordered[0], ordered[-1]]))


def describe_verdict(data: Mapping[str, Any], metrics: Mapping[str, Metric]) -> str:
    """Describes how each network compares with the baseline, by the intervals of the paired differences.

    Only perceptual metrics with a reference count: `PERCEPTUAL`.
    """
    networks = [method['name'] for method in data['methods'] if method['kind'] == 'network']
    if not networks:
        return ''
    pairs = [
        p for p in data['paired'] if p['against'] == BASELINE and p['metric'] in PERCEPTUAL and p['metric'] in metrics
    ]
    if not pairs:
        return 'No perceptual metric with a reference was compared with bilinear: nothing is concluded about quality.'
    by_finding: dict[str, list[str]] = {}
    for name in networks:
        of_network = [(metrics[pair['metric']], pair) for pair in pairs if pair['method'] == name]
        found = []
        for outcome in Outcome:
            labels = [metric.label for metric, pair in of_network if find_outcome(metric, pair) is outcome]
            found += [f'{outcome.value} by {join_words(labels)}'] if labels else []
        by_finding.setdefault('; '.join(found) or 'not compared', []).append(name)
    sentences = [f'{join_words(names)}: {finding}.' for finding, names in by_finding.items()]
    confidence = _percent(pairs[0]['confidence'])
    return (
        f'Compared with bilinear by perceptual metrics with a reference, {confidence} confidence. {" ".join(sentences)}'
    )


def _percent(fraction: float) -> str:
    return f'{100 * fraction:g} %'


def _method_cell(method: Mapping[str, Any]) -> Cell:
    details = {'ceiling': 'ceiling', 'network': f'NFE {method.get("nfe")}'}
    return Cell(method['name'], details.get(method['kind'], ''))


def _is_compared(method: Mapping[str, Any]) -> bool:
    return method['kind'] not in ('truth', 'ceiling')


def _metric_column(metric: Metric) -> Column:
    return Column(metric.label + metric.arrow, metric.note, numeric=True)


def _table(
    methods: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric],
    find: Callable[[str, str], tuple[float | None, str]],
    caption: str = '',
) -> Table:
    """Builds a table of methods by metrics.

    Args:
      methods: the rows.
      metrics: the columns.
      find: returns the value, and a detail, for (method, key of a metric).
      caption: of the table.
    """
    best = {
        m.key: find_best(
            m, {method['name']: find(method['name'], m.key)[0] for method in methods if _is_compared(method)}
        )
        for m in metrics
    }
    rows = []
    for method in methods:
        row = [_method_cell(method)]
        for metric in metrics:
            value, detail = find(method['name'], metric.key)
            mark = Mark.BEST if method['name'] in best[metric.key] else Mark.NONE
            row.append(Cell(metric.format(value), detail, mark))
        rows.append(row)
    return Table([Column('Method'), *map(_metric_column, metrics)], rows, caption)


def _summary(data: Mapping[str, Any], metrics: Mapping[str, Metric]) -> Iterator[Block]:
    summary, sets = data['summary'], data['sets']
    of_sets = {key for values in sets.values() for key in values}
    require(of_sets <= metrics.keys(), f'metrics of sets {sorted(of_sets)} are not all described in metrics')

    def find(method: str, key: str) -> tuple[float | None, str]:
        if found := sets.get(method, {}).get(key):
            return read_number(found['value']), f'{found["clips"]} clips'
        found = summary.get(method, {}).get(key)
        if not found:
            return None, ''
        error = read_number(found['standard_error'])
        return read_number(found['mean']), '' if error is None else f'± {metrics[key].format(error)}'

    shown = [m for m in metrics.values() if m.key in of_sets or any(m.key in values for values in summary.values())]
    yield Heading('Summary')
    yield _table(
        data['methods'],
        shown,
        find,
        'Mean over clips ± standard error. ↑ higher is better, ↓ lower is better, no arrow: not a score. Bold: the '
        'best of a metric, without the ground truth and the round trip through the VAE, which is a ceiling. NFE: '
        'evaluations of the network.',
    )
    if losses := data['losses']:
        yield Text(
            f'Loss of the network on these clips: {losses["model"]:.4f}; of a linear predictor of 3x3x3: '
            f'{losses["linear_3x3x3"]:.4f}; ratio {losses["ratio"]:.3f}.'
        )


def _paired_differences(data: Mapping[str, Any], metrics: Mapping[str, Metric]) -> Iterator[Block]:
    pairs = {(p['metric'], p['method'], p['against']): p for p in data['paired'] if p['metric'] in metrics}
    if not pairs:
        return
    compared = list(dict.fromkeys((method, against) for _, method, against in pairs))
    rows = []
    for metric in metrics.values():
        if any((metric.key, *names) in pairs for names in compared):
            cells = [_difference_cell(metric, pairs.get((metric.key, *names))) for names in compared]
            rows.append([Cell(metric.label + metric.arrow, metric.unit), *cells])
    clips = join_words([*dict.fromkeys(str(p['clips']) for p in pairs.values())])
    confidence = _percent(next(iter(pairs.values()))['confidence'])
    yield Heading('Paired differences')
    yield Table(
        [Column('Metric'), *(Column(method, f'minus {against}', numeric=True) for method, against in compared)],
        rows,
        f'Mean over {clips} clips of the difference on the same clip, with its {confidence} confidence interval. '
        '✓ better, ✗ worse; without a sign, the interval contains zero, or the metric is not a score.',
    )


def _difference_cell(metric: Metric, pair: Mapping[str, Any] | None) -> Cell:
    if pair is None:
        return Cell(NOT_DEFINED)
    low, high = read_number(pair['low']), read_number(pair['high'])
    untested = low is None or high is None
    interval = '' if untested else f'[{metric.format(low, signed=True)}, {metric.format(high, signed=True)}]'
    mark = _MARKS.get(find_outcome(metric, pair), Mark.NONE)
    return Cell(metric.format(read_number(pair['difference']), signed=True), interval, mark)


def _charts(data: Mapping[str, Any], metrics: Mapping[str, Metric]) -> Iterator[Block]:
    series: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for method in data['methods']:
        if method['kind'] == 'network':
            others = {key: value for key, value in method['settings'].items() if key != 'num_steps'}
            key = method['checkpoint'], method['step'], json.dumps(others, sort_keys=True)
            series.setdefault(key, []).append(method)
    series = {key: methods for key, methods in series.items() if len({m['num_steps'] for m in methods}) > 1}
    settings = {key[2] for key in series}
    charts = []
    for metric in (metrics[key] for key in CHARTED if key in metrics):
        lines = []
        for (checkpoint, step, other), methods in series.items():
            name = f'{checkpoint}, step {step}' + (f', {other}' if len(settings) > 1 else '')
            points = [point for method in methods if (point := _point(data, method, metric))]
            lines += [Line(name, points)] if points else []
        if not lines:
            continue
        baseline = _finite_mean(data, BASELINE, metric)
        levels = [] if baseline is None else [Level(BASELINE, baseline)]
        y_label = ', '.join(filter(None, [metric.unit, _DIRECTIONS[metric.sign]]))
        charts.append(Chart(metric.label, 'number of steps', y_label, lines, levels))
    if charts:
        yield Heading('Number of steps')
        yield Charts(charts, 'Mean over clips; error bars are standard errors.')


def _finite_mean(data: Mapping[str, Any], method: str, metric: Metric) -> float | None:
    mean = read_number(data['summary'].get(method, {}).get(metric.key, {}).get('mean'))
    return None if mean is None or abs(mean) == float('inf') else mean


def _point(data: Mapping[str, Any], method: Mapping[str, Any], metric: Metric) -> Point | None:
    mean = _finite_mean(data, method['name'], metric)
    if mean is None:
        return None
    return Point(
        method['num_steps'], mean, read_number(data['summary'][method['name']][metric.key]['standard_error']) or 0
    )


def _clips(data: Mapping[str, Any], metrics: Mapping[str, Metric], media: Mapping[str, ClipMedia]) -> Iterator[Block]:
    yield Heading('Clips')
    for clip in data['clips']:
        height, width = clip['size']
        source = f', enlarged from {"x".join(map(str, clip["input_size"]))}' if clip.get('input_size') else ''
        yield Heading(clip['name'], 3)
        yield Text(f'{clip["frames"]} frames of {height}x{width} pixels{source}.')
        if files := media.get(clip['name']):
            yield Figure(
                files.strip,
                f'{clip["name"]}: middle frames and enlarged details of {join_words([*files.videos])}',
                'The middle frame of each method; below it the outlined part, enlarged.',
            )
            yield from _comparison(data, files)
        values = clip['values']

        def find(method: str, key: str, values: Mapping[str, Any] = values) -> tuple[float | None, str]:
            return read_number(values.get(method, {}).get(key)), ''

        methods = [method for method in data['methods'] if method['name'] in values]
        shown = [m for m in metrics.values() if any(m.key in of_method for of_method in values.values())]
        yield _table(methods, shown, find)


def _comparison(data: Mapping[str, Any], media: ClipMedia) -> Iterator[Block]:
    """Yields the comparison of a clip's videos: at first the baseline on the left, the first network on the right."""
    labels = [*media.videos]
    if not labels:
        return
    networks = [m['name'] for m in data['methods'] if m['kind'] == 'network' and m['name'] in labels]
    left = BASELINE if BASELINE in labels else labels[0]
    right = networks[0] if networks else labels[-1]
    info = decoding.probe(media.videos[left])
    fps = float(info.fps)
    yield VideoComparison(media.name, media.videos, (info.height, info.width), fps, left, right)


def _not_computed(data: Mapping[str, Any]) -> Iterator[Block]:
    if missing := data['not_computed']:
        yield Heading('Not computed')
        rows = [[Cell(name), Cell(reason)] for name, reason in missing.items()]
        yield Table([Column('Metric'), Column('Reason')], rows)


def _settings(data: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading('Settings')
    yield _pairs('Setting', 'Value', data['settings'])
    networks = [method for method in data['methods'] if method['kind'] == 'network']
    if networks:
        columns = [Column('Network'), Column('Checkpoint'), *(Column(n, '', True) for n in ('Step', 'Steps', 'NFE'))]
        rows = [
            [
                Cell(m['name']),
                *(Cell(str(m[key])) for key in ('checkpoint', 'step', 'num_steps', 'nfe')),
                Cell(_show(m['settings'])),
            ]
            for m in networks
        ]
        yield Table([*columns, Column('Settings')], rows, 'Step: of training; Steps: of sampling.')
    yield _pairs('Program', 'Version', data['versions'])
    if data['weights']:
        yield _pairs('Weights', 'SHA-256', data['weights'])


def _pairs(key: str, value: str, values: Mapping[str, Any]) -> Table:
    return Table([Column(key), Column(value)], [[Cell(name), Cell(_show(item))] for name, item in values.items()])


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return ', '.join(f'{key}={_show(item)}' for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
