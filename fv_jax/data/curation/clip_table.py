"""The clips of prepared sets and their scores, as a table, with the frames that a page shows of them."""

import functools

import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.curation.duplicates import DUPLICATE_OF
from fv_jax.data.curation.scores import SCORES
from fv_jax.data.shards.selection import Selected, Selection, opened_records, sequences
from fv_jax.data.shards.source import Shards
from fv_jax.data.video import decoding

_DESCRIBED = ('source', 'first_seconds', 'last_seconds')


class ClipTable:
    """The clips of some shards.

    Attributes:
      columns: name -> the values of all clips: numbers with NaN, texts with None where one is missing.
    """

    def __init__(self, shards: Shards):
        """Reads the columns. Raises ValueError for a set without a manifest or without scores."""
        self._shards = shards
        parts: dict[str, list[np.ndarray]] = {name: [] for name in (*_DESCRIBED, *SCORES, DUPLICATE_OF)}
        for one in shards.sets:
            known = () if one.manifest is None else one.manifest.columns()
            missing = [name for name in parts if name not in known]
            require(not missing, f'{one.index_path}: has no scores ({", ".join(missing)}); prepare the clips again')
            require(opened_records(one).all(), f'{one.index_path}: some of its shards cannot be read')
            for group in one.manifest.read_columns(list(parts)):
                for name, values in group.items():
                    parts[name].append(values.to_numpy(zero_copy_only=False))
        self.columns = {name: np.concatenate(values) for name, values in parts.items()}
        self._frame = functools.lru_cache(maxsize=256)(self._decode_frame)

    def __len__(self) -> int:
        return len(self._shards)

    def select(self, selection: Selection) -> Selected:
        """Finds what a selection keeps and drops, as `selection.select_records`."""
        return self._shards.select(selection)

    def scores(self) -> dict[str, np.ndarray]:
        """Returns the scores that are numbers, float64 with NaN where one is missing."""
        return {name: self.columns[name].astype(float) for name, score in SCORES.items() if score.kind != 'str'}

    def seconds(self) -> float:
        """Computes the length of all clips."""
        return float((self.columns['last_seconds'] - self.columns['first_seconds']).sum())

    def duplicates(self) -> np.ndarray:
        """Returns (original, near duplicate) of all clips that are marked, int64 (n, 2)."""
        marks = self.columns[DUPLICATE_OF].astype(float)
        counts = np.array([one.records.sum() for one in self._shards.sets])
        ends = np.cumsum(counts)
        pairs = [np.zeros((0, 2), np.int64)]
        for group in sequences(self._shards.sets):
            ranges = [
                np.arange(ends[number] - self._shards.sets[number].records.sum(), ends[number]) for number in group
            ]
            indices = np.concatenate([np.zeros(0, np.int64), *ranges])  # of the clips that marks count
            found = indices[np.isfinite(marks[indices])]
            pairs.append(np.column_stack([indices[marks[found].astype(np.int64)], found]))
        return np.concatenate(pairs)

    def describe(self, index: int) -> str:
        """Returns the video of a clip, and where in it the clip begins."""
        return f'{self.columns["source"][index]} {self.columns["first_seconds"][index]:.1f} s'

    def show(self, name: str, index: int) -> str:
        """Formats a value."""
        value = self.columns[name][index] if name in self.columns else None
        if isinstance(value, str):
            return value
        return 'none' if value is None or value != value else f'{value:,.0f}' if value >= 1000 else f'{value:.3g}'

    def read_frame(self, index: int) -> np.ndarray | None:
        """Decodes the middle frame of a clip, uint8 HWC; None for records without a video."""
        return self._frame(index)

    def _decode_frame(self, index: int) -> np.ndarray | None:
        record = self._shards[index]
        if (video := record.get('video')) is None:
            return None
        middle = int(record['frames']) // 2
        return video[middle] if isinstance(video, np.ndarray) else decoding.decode(video, middle + 1).frames[-1]
