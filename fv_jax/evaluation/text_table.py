"""The summary of an evaluation as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from fv_jax.evaluation.report_values import read_metrics, read_number

SHOWN = ('psnr', 'ssim', 'lpips_alexnet', 'lpips_vgg16', 'dists', 'vmaf_neg', 'niqe')


def format_table(data: Mapping[str, Any]) -> str:
    """Formats the means over clips of the main metrics, a line for each method, from the content of `report.json`."""
    metrics = [metric for key, metric in read_metrics(data).items() if key in SHOWN]
    summary = data['summary']
    found = {key for values in summary.values() for key in values}
    metrics = [metric for metric in metrics if metric.key in found]
    rows = [['method', *(metric.label + metric.arrow for metric in metrics)]]
    for method in data['methods']:
        means = (summary[method['name']].get(metric.key, {}).get('mean') for metric in metrics)
        values = [metric.format(read_number(mean)) for metric, mean in zip(metrics, means, strict=True)]
        rows.append([method['name'], *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)
