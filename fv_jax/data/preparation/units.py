"""Units of footage, and which of them make a shard.

A unit is a time range of a video. A video whose header states more than one and a half times `unit_seconds` is cut into
n equal ranges, n = round(seconds / unit_seconds), if it can be read from the middle; any other video is one unit.

The units are those of the videos in the order of their names. A shard has consecutive units of at least S megabytes of
files together, or the last ones. S is `shard_mb`, but a 64th of all files where that is less, and at least 4: with
fewer shards, several processes would have nothing to share.

Both depend on nothing but the list of files with their sizes, the headers of the long ones, and the configuration.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from fv_jax.core import files
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import seeking
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.data.video.containers import open_container
from fv_jax.data.video.seeking import Span

# Files of fewer bytes are not opened to be planned: 120 seconds of 1080p have more.
_LONG_BYTES = 32e6
_SHARDS = 64
_SMALLEST_MB = 4.0


@dataclasses.dataclass(frozen=True)
class Unit:
    """A time range of a video, and everything else that its clips depend on.

    Attributes:
      source: the name of the video, relative to the input.
      path: the path or the URL of the video.
      bytes: size of the video's file, or the part of it that the range has.
      first, last: seconds; infinite at the end of the video.
      caption: of the video; None without one.
      part: 0 for the first unit of a video.
    """

    source: str
    path: str
    bytes: int
    first: float = 0.0
    last: float = math.inf
    caption: str | None = None
    part: int = 0

    @property
    def span(self) -> Span:
        return Span(self.first, self.last)


@dataclasses.dataclass(frozen=True)
class Footage:
    """A video to prepare. bytes: of its file. caption: None without one."""

    path: StoragePath
    bytes: int
    caption: str | None


def plan_units(footage: Mapping[str, Footage], config: ClipsConfig) -> list[Unit]:
    """Returns the units of videos, in the order of the names' parts.

    Args:
      footage: by the names of the videos.
      config: of the clips.
    """
    names = sorted(footage, key=lambda name: name.split('/'))
    long = [] if config.unit_seconds is None else [name for name in names if footage[name].bytes >= _LONG_BYTES]
    seconds = dict(zip(long, files.map_paths(_read_seconds, [footage[name].path for name in long]), strict=True))
    return [unit for name in names for unit in _cut(name, footage[name], seconds.get(name), config.unit_seconds)]


def _read_seconds(path: StoragePath) -> float | None:
    """Returns the length of a video that can be read from the middle, by its header; None for any other."""
    try:
        with open_container(path, only_header=True) as file:
            return seeking.duration(file) if seeking.is_seekable(file) else None
    except ValueError:
        return None  # what is wrong with it is found, and named, when its clips are made


def _cut(name: str, video: Footage, seconds: float | None, unit_seconds: float | None) -> Iterator[Unit]:
    count = max(round(seconds / unit_seconds), 1) if seconds and unit_seconds else 1
    for part in range(count):
        first = seconds * part / count if part else 0.0
        last = seconds * (part + 1) / count if part + 1 < count else math.inf
        size = video.bytes * (part + 1) // count - video.bytes * part // count
        yield Unit(name, str(video.path), size, first, last, video.caption, part)


def group_units(units: Sequence[Unit], shard_mb: float) -> list[int]:
    """Returns the number of the shard of each unit."""
    total = sum(unit.bytes for unit in units)
    target = min(max(total / 1e6 / _SHARDS, _SMALLEST_MB), shard_mb) * 1e6
    numbers, shard, size = [], 0, 0
    for unit in units:
        if size >= target:
            shard, size = shard + 1, 0
        numbers.append(shard)
        size += unit.bytes
    return numbers
