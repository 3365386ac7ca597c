"""The values of `report.json`: metrics, numbers as text, and what a paired difference shows."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_DEFINED = '\N{EN DASH}'
_ARROWS = {'higher': ' ↑', 'lower': ' ↓', 'none': ''}
_SIGNS = {'higher': 1, 'lower': -1}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric as the report names it.

    Attributes:
      key: in `report.json`.
      label: for readers.
      sign: 1 if higher values are better, -1 if lower ones are, 0 if neither.
      arrow: the same for readers, with a space before it.
      unit: of the values; '' without one.
      digits: after the decimal point.
      frames: which frames it was computed on, 'all' or '3 of 17'.
      reference: whether it needs the ground truth.
    """

    key: str
    label: str
    sign: int
    arrow: str
    unit: str
    digits: int
    frames: str
    reference: bool

    @property
    def note(self) -> str:
        """The unit, and the frames where they are not all."""
        frames = '' if self.frames == 'all' else f'{self.frames} frames'
        return ', '.join(filter(None, [self.unit, frames]))

    def format(self, value: float | None, signed: bool = False) -> str:
        """Formats a value of this metric; with `signed` a positive one has its sign too."""
        if value is None:
            return NOT_DEFINED
        sign = '+' if signed else '-'
        text = f'{value:{sign}.{self.digits}f}'.replace('inf', '∞')
        return text.replace('-', '\N{MINUS SIGN}')


def read_metrics(data: Mapping[str, Any]) -> dict[str, Metric]:
    """Reads the metrics of a report, by key, in order."""
    return {
        key: Metric(
            key,
            value['label'],
            _SIGNS.get(value['direction'], 0),
            _ARROWS[value['direction']],
            value['unit'],
            value['digits'],
            value['frames'],
            value['reference'],
        )
        for key, value in data['metrics'].items()
    }


def read_number(value: float | str | None) -> float | None:
    """Reads a value: a number, 'inf', or None where it is not defined or was NaN."""
    if value is None:
        return None
    number = float(value)
    return None if math.isnan(number) else number


def find_best(metric: Metric, values: Mapping[str, float | None]) -> set[str]:
    """Finds the methods that have the best value, as far as the digits shown distinguish them.

    Args:
      metric: none is best where it has no direction.
      values: of the methods that are compared; None where one is not defined.
    """
    defined = {name: value for name, value in values.items() if value is not None}
    if not metric.sign or len(defined) < 2:
        return set()
    best = metric.format(max(defined.values(), key=lambda value: metric.sign * value))
    return {name for name, value in defined.items() if metric.format(value) == best}


class Outcome(enum.Enum):
    """What the confidence interval of a paired difference shows."""

    BETTER = 'better'
    WORSE = 'worse'
    NO_DIFFERENCE = 'no significant difference'
    UNDECIDED = 'undecided (too few clips)'


def find_outcome(metric: Metric, pair: Mapping[str, Any]) -> Outcome | None:
    """Finds whether zero lies in the interval of a paired difference; None for a metric without direction."""
    low, high = read_number(pair['low']), read_number(pair['high'])
    if not metric.sign:
        return None
    if low is None or high is None:
        return Outcome.UNDECIDED
    if low <= 0 <= high:
        return Outcome.NO_DIFFERENCE
    return Outcome.BETTER if metric.sign * low > 0 else Outcome.WORSE


def join_words(words: Sequence[str]) -> str:
    """Joins words as a sentence does: 'a, b and c'."""
    return ' and '.join(filter(None, [', '.join(words[:-1]), *words[-1:]]))
