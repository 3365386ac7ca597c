"""Which records of prepared sets are trained on: those that a filter keeps, and one of those that are alike.

Both are decided when a data set is opened, from the columns of the manifests, so that a threshold can change without
preparing again. The order of what is kept depends on the manifests and the configuration alone.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.core.config import ConfigError, did_you_mean
from fv_jax.data.curation.duplicates import DUPLICATE_OF, NONE
from fv_jax.data.curation.filters import Filter, first_unfulfilled
from fv_jax.data.shards.shard_set import ShardSet

KEPT = -1
DUPLICATE = 'a near duplicate of another clip'
_SET = re.compile(r'(?P<base>.+?)(\.(?P<number>[1-9][0-9]*))?')  # NAME, NAME.1, NAME.2, ... are one sequence


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is kept of a source.

    Attributes:
      filter: that clips must fulfill.
      drop_duplicates: whether of near duplicates that the filter keeps only the first is kept.
    """

    filter: Filter
    drop_duplicates: bool = True

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why clips are dropped, by number."""
        return (*(f'not {term.text}' for term in self.filter.terms), DUPLICATE)

    @property
    def is_empty(self) -> bool:
        return not self.filter.terms and not self.drop_duplicates


class Selected(NamedTuple):
    """What a selection keeps and drops.

    Attributes:
      dropped: int16 (records,), the number of a reason of the selection, `KEPT` for what is kept.
      totals: int64, how many records each reason applies to, whether or not another one applies first.
    """

    dropped: np.ndarray
    totals: np.ndarray


def select_records(sets: Sequence[ShardSet], selection: Selection) -> Selected:
    """Finds why each record of some sets is dropped. The manifests are read once.

    Args:
      sets: in the order of their records.
      selection: of the records.

    Raises:
      ConfigError: a set has no such column, or values of another type.
      ValueError: a manifest is damaged.
    """
    totals = np.zeros(len(selection.reasons), np.int64)
    found = {number: _filter_set(one, selection.filter, totals) for number, one in enumerate(sets)}
    if selection.drop_duplicates:
        for group in sequences(sets):
            parts = [found[number] for number in group]
            totals[-1] += _drop_duplicates([sets[number] for number in group], parts, selection)
    dropped = [found[number][opened_records(one)] for number, one in enumerate(sets)]
    return Selected(np.concatenate([np.zeros(0, np.int16), *dropped]), totals)


def _filter_set(one: ShardSet, wanted: Filter, totals: np.ndarray) -> np.ndarray:
    """Applies a filter to all rows of a set, also to those of shards that are not opened.

    To `totals` it adds how many opened rows do not fulfill each term.
    """
    if one.manifest is None or not wanted.terms:
        fix = 'prepare the clips again, or set data.filter to an empty text'
        require(not wanted.terms, f'{one.index_path}: {wanted.text!r} needs a manifest with scores; {fix}', ConfigError)
        return np.full(_num_rows(one), KEPT, np.int16)
    known, path = one.manifest.columns(), one.manifest.path
    for name in wanted.names:
        hint = 'prepare the clips again' if 'bandwidth' not in known else did_you_mean(name, known)
        require(name in known, f'{path}: has no column {name!r} for {wanted.text!r}; {hint}', ConfigError)
    parts, opened, start = [np.zeros(0, np.int16)], opened_records(one), 0
    with error_context(f'{path}: ', ConfigError, ConfigError):
        # A filter without names, such as False, still needs the number of rows.
        for group in one.manifest.read_columns(wanted.names or ('shard',)):
            columns = {name: _to_numpy(group[name]) for name in group}
            count = len(next(iter(columns.values())))
            fulfilled = wanted.fulfilled(columns, count)
            totals[: len(fulfilled)] += (~fulfilled & opened[start : start + count]).sum(axis=1)
            parts.append(first_unfulfilled(fulfilled))
            start += count
    return np.concatenate(parts)


def _to_numpy(column: object) -> np.ndarray:
    """Converts an Arrow column; missing numbers become NaN, other missing values None."""
    return column.to_numpy(zero_copy_only=False)


def _num_rows(one: ShardSet) -> int:
    return int((one.records if one.manifest is None else one.manifest.records).sum())


def opened_records(one: ShardSet) -> np.ndarray:
    """Returns which records of a set are in shards that are opened, bool (records,)."""
    if one.manifest is None:
        return np.ones(_num_rows(one), bool)
    opened = np.isin(np.arange(len(one.manifest.records)), one.numbers)
    return np.repeat(opened, one.manifest.records)


def sequences(sets: Sequence[ShardSet]) -> Iterator[list[int]]:
    """Yields the numbers of the sets NAME, NAME.1, ... of each name, in order, as far as none is missing."""
    by_name: dict[str, dict[int, int]] = {}
    for number, one in enumerate(sets):
        match = _SET.fullmatch(str(one.index_path).removesuffix('.json'))
        by_name.setdefault(match['base'], {})[int(match['number'] or 0)] = number
    for found in by_name.values():
        # The marks of a set whose earlier sets are not opened mean clips that are not read: it is kept whole.
        count = next(number for number in itertools.count() if number not in found)
        yield [found[number] for number in range(count)]


def _drop_duplicates(sets: Sequence[ShardSet], found: Sequence[np.ndarray], selection: Selection) -> int:
    """Drops, of each clip and its near duplicates, all but the first that the filter keeps; changes `found`.

    Returns how many would be dropped without the filter.
    """
    marks = np.concatenate([np.zeros(0, np.int64), *map(_read_marks, sets)])
    members = np.flatnonzero(marks != NONE)
    if not len(members):
        return 0
    members = np.union1d(members, marks[members])
    original = np.where(marks[members] == NONE, members, marks[members])
    dropped, opened = np.concatenate(found), np.concatenate([opened_records(one) for one in sets])
    members, original = members[opened[members]], original[opened[members]]
    total = len(members) - len(np.unique(original))
    passing = dropped[members] == KEPT
    members, original = members[passing], original[passing]
    _, firsts = np.unique(original, return_index=True)
    extra = np.delete(members, firsts)
    ends = np.cumsum([len(part) for part in found])
    for part, end in zip(found, ends, strict=True):
        here = extra[(extra >= end - len(part)) & (extra < end)]
        part[here - (end - len(part))] = len(selection.reasons) - 1
    return total


def _read_marks(one: ShardSet) -> np.ndarray:
    """Reads which clip each is a duplicate of, int64 (rows,)."""
    if one.manifest is None or DUPLICATE_OF not in one.manifest.columns():
        return np.full(_num_rows(one), NONE, np.int64)
    groups = one.manifest.read_columns([DUPLICATE_OF])
    parts = [group[DUPLICATE_OF].fill_null(NONE).to_numpy(zero_copy_only=False) for group in groups]
    return np.concatenate([np.zeros(0, np.int64), *parts])
