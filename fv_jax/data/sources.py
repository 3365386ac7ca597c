"""Data sources by name.

  embedded            the video clips in the package
  synthetic           drifting sinusoids, for smoke tests
  sprites, grid_sprites, sprite_crops
                      rendered, with captions (`sprites.open_source`); 'sprites:500' for 500 clips
  stills:NAME         the first frame of every clip of another source, as images
  pingpong:NAME       every clip of another source forwards, backwards and forwards again: longer clips
  moving:NAME         the first frames of another source, with a camera that moves over them (`moving_images.py`);
                      'moving:500:NAME' for 500 clips
  images:FOLDER       images (png, jpg, jpeg, webp), with captions as of videos (`captions.py`)
  tfds:FOLDER         a prepared TFDS data set of videos (`tfds_builder.py`)
  FOLDER              shards that `prepare` wrote; those of gs:// and s3:// are fetched while they are read

A remote folder of `images:` or `tfds:` is copied to the cache folder when it is opened.

Several are joined by '+' into one source, whose records are equally likely. With a weight after each, as in
'data/clips@3+images:photos@1', examples are drawn from them in that proportion, however many records they have.
Within double quotes + and @ are part of a name: '"data/a+b"@3+images:"photos@home"@1'.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.data import embedded, images
from fv_jax.data.folders import find_media, log_lines, name_some
from fv_jax.data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from fv_jax.data.loader import DataSource
from fv_jax.data.record_sizes import RecordSizes
from fv_jax.data.shard_order import ShardLayout
from fv_jax.data.shards.records import Record
from fv_jax.data.shards.selection import KEPT, Selection
from fv_jax.data.shards.shard_cache import RemoteShard
from fv_jax.data.shards.source import Shards, measure_records
from fv_jax.data.streaming import find_layout, find_shard, read_in_order
from fv_jax.data.video import decoding
from fv_jax.data.video.captions import Captions

EMBEDDED, SYNTHETIC, IMAGES, TFDS = 'embedded', 'synthetic', 'images', 'tfds'
STILLS, PINGPONG, MOVING = 'stills', 'pingpong', 'moving'
_OUTSIDE_QUOTES = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'  # whole pairs of quotes follow


def parse(names: str) -> list[tuple[str, float | None]]:
    """Splits 'a@3+"b+c"@1' into [('a', 3.0), ('b+c', 1.0)]; the weight of 'a' alone is None.

    Raises ConfigError for a weight that is not a positive number, a quote without its other one, or where only some
    names have a weight.
    """
    require(names.count('"') % 2 == 0, f'{names}: a double quote is not closed', ConfigError)
    hint = 'a name with + or @ must be in double quotes'
    parts = []
    for part in re.split(f'[+]{_OUTSIDE_QUOTES}', names):
        name, *weight = re.split(f'@{_OUTSIDE_QUOTES}', part)
        require(name, f'{names}: a name is missing; {hint}', ConfigError)
        require(len(weight) < 2, f'{part}: has more than one @; {hint}', ConfigError)
        parts.append((name.replace('"', ''), _parse_weight(part, weight[0], hint) if weight else None))
    weighted = [weight is not None for _, weight in parts]
    if any(weighted) and not all(weighted):
        raise ConfigError(f'{names}: some sources have a weight and some do not; give all of them one, or none')
    return parts


def _parse_weight(part: str, text: str, hint: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    require(0 < value < float('inf'), f'{part}: expected a weight above 0 after the @; {hint}', ConfigError)
    return value


class ConcatSource:
    """Concatenates several sources into one. If shards of one are fetched, local ones count as shards of its length."""

    def __init__(self, parts: Sequence[DataSource]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.sources = tuple(parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        part, local = self._locate(index)
        return part[local]

    def record_name(self, index: int) -> str:
        """Returns the name of a record in its own source."""
        part, local = self._locate(index)
        return record_name(part, local)

    def sizes(self) -> RecordSizes | None:
        """Reads the sizes of all records; None if one of the sources has none."""
        found = [read_sizes(part) for part in self._parts]
        return None if any(sizes is None for sizes in found) else RecordSizes.concatenate(found)

    def dropped(self, selection: Selection) -> np.ndarray | None:
        """Finds why each record is dropped; None if no source has scores. Of those without, all are kept."""
        found = [find_dropped(part, selection) for part in self._parts]
        if all(part is None for part in found):
            return None
        pairs = zip(self._parts, found, strict=True)
        return np.concatenate([np.full(len(part), KEPT, np.int16) if codes is None else codes for part, codes in pairs])

    def layout(self) -> ShardLayout | None:
        """Returns how the records are divided into shards; None if none is fetched."""
        found = [find_layout(part) for part in self._parts]
        if not (fetched := [layout for layout in found if layout is not None]):
            return None
        length = math.ceil(np.mean(np.concatenate([layout.counts for layout in fetched])))
        pairs = zip(self._parts, found, strict=True)
        return ShardLayout.concatenate([layout or ShardLayout.local(len(part), length) for part, layout in pairs])

    def remote_shard(self, index: int) -> RemoteShard | None:
        """Returns the shard that must be fetched for a record, if any."""
        return find_shard(*self._locate(index))

    def _locate(self, index: int) -> tuple[DataSource, int]:
        part = int(np.searchsorted(self._ends, index, side='right'))
        return self._parts[part], int(index - self._ends[part] + len(self._parts[part]))


class InMemory:
    """A source decoded once and kept in memory. A record that cannot be decoded raises when it is read."""

    def __init__(self, source: DataSource):
        self._names = [record_name(source, i) for i in range(len(source))]
        with read_in_order(source) as indices:
            self._records = [_decode_record(source, i) for i in indices]
        self._source, self._sizes, self.sources = source, read_sizes(source), (source,)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        if isinstance(record, ValueError):
            raise record
        return record

    def record_name(self, index: int) -> str:
        return self._names[index]

    def sizes(self) -> RecordSizes | None:
        """Returns the sizes of all records; None if the source has none."""
        return self._sizes

    def dropped(self, selection: Selection) -> np.ndarray | None:
        """Finds why each record is dropped; None if the source has no scores."""
        return find_dropped(self._source, selection)


def _decode_record(source: DataSource, index: int) -> Record | ValueError:
    try:
        record = source[index]
        video = record['video']
        return record | {'video': decoding.decode(video).frames if isinstance(video, bytes) else video}
    except ValueError as error:
        return error


class MappedSource:
    """A source whose clips are computed from those of another source."""

    def __init__(self, source: DataSource):
        self._source, self.sources = source, (source,)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if (video := record.get('video')) is None:
            raise ValueError(f'{self.record_name(index)}: has no video')
        frames = self._frames(video)
        return record | {'video': frames, 'frames': len(frames)}

    def record_name(self, index: int) -> str:
        return record_name(self._source, index)

    def sizes(self) -> RecordSizes | None:
        """Computes the sizes of all records from those of the source; None if it has none."""
        sizes = read_sizes(self._source)
        if sizes is None:
            return None
        return sizes.map(lambda kinds: np.column_stack([self._counts(kinds[:, 0]), kinds[:, 1:]]))

    def dropped(self, selection: Selection) -> np.ndarray | None:
        """Finds why each record is dropped; None if the source has no scores."""
        return find_dropped(self._source, selection)

    def layout(self) -> ShardLayout | None:
        """Returns how the records of the source are divided into shards; None if none is fetched."""
        return find_layout(self._source)

    def remote_shard(self, index: int) -> RemoteShard | None:
        """Returns the shard that must be fetched for a record, if any."""
        return find_shard(self._source, index)

    def _frames(self, video: bytes | np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _counts(self, frames: np.ndarray) -> np.ndarray:
        """Computes the lengths of the new clips from those of the original ones."""
        raise NotImplementedError


class FirstFrames(MappedSource):
    """The first frames of a source's clips, as clips of one frame."""

    def _frames(self, video: bytes | np.ndarray) -> np.ndarray:
        return decoding.decode(video, max_frames=1).frames if isinstance(video, bytes) else video[:1]

    def _counts(self, frames: np.ndarray) -> np.ndarray:
        return np.minimum(frames, 1)


class PingPong(MappedSource):
    """A source's clips played forwards, backwards and forwards again: 3 F - 2 frames of F."""

    def _frames(self, video: bytes | np.ndarray) -> np.ndarray:
        forth = decoding.decode(video).frames if isinstance(video, bytes) else video
        return np.concatenate([forth, forth[-2::-1], forth[1:]]) if len(forth) > 1 else forth

    def _counts(self, frames: np.ndarray) -> np.ndarray:
        return np.maximum(3 * frames - 2, 0)


class ImageFolder:
    """The images in a folder, searched recursively, as clips of one frame.

    Raises ValueError for a folder without any.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        require(self._folder.is_dir(), f'{folder}: no such folder')
        media = find_media(self._folder, IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES)
        self._files = [self._folder / name for name in media.files]
        others = f'; it has {name_some(media.skipped)}' if media.skipped else ''
        suffixes = ', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        require(self._files, f'{folder}: holds no images ({suffixes}){others}')
        self._captions = Captions(self._folder)
        lines = [f'{folder}/{name}: {reason}' for name, reason in media.skipped.items()]
        log_lines([*lines, *self._captions.describe_problems(self._files)])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path = self._files[index]
        frame = images.read_image(path)
        record = {'video': frame[None], 'fps': 1.0, 'frames': 1, 'height': frame.shape[0], 'width': frame.shape[1]}
        caption = self._captions.find(path)
        return record | {'source': path.name} | ({} if caption is None else {'caption': caption})

    def record_name(self, index: int) -> str:
        return str(self._files[index])

    def sizes(self) -> RecordSizes:
        """Reads (1, height, width) as shown of all images from their headers; zeros where they cannot be read."""
        found, unreadable = np.ones((len(self._files), 3), np.int64), []
        for row, path in zip(found, self._files, strict=True):
            try:
                row[1:] = images.read_size(path)
            except ValueError as error:
                row[1:] = 0
                unreadable.append(str(error))
        log_lines(unreadable)
        return RecordSizes.from_array(found)


def open_embedded_shards(*, heldout: bool) -> Shards:
    """Opens the video clips in the package."""
    return Shards(embedded.heldout_shards() if heldout else embedded.train_shards())


def record_name(source: DataSource, index: int) -> str:
    """Returns a record's name for messages."""
    named = getattr(source, 'record_name', None)
    return named(index) if named else f'record {index}'


def read_sizes(source: DataSource) -> RecordSizes | None:
    """Reads the sizes of all records, zeros where a record does not state its size.

    None for sources that draw their clips at a given size.
    """
    if isinstance(source, list):
        return measure_records(source)
    measured = getattr(source, 'sizes', None)
    return measured() if measured else None


def find_dropped(source: DataSource, selection: Selection) -> np.ndarray | None:
    """Finds why each record is dropped: int16 (n,), see `shards.selection`; None for sources without scores.

    Raises:
      ConfigError: the filter needs a column that the source has not.
      ValueError: a manifest is damaged.
    """
    dropped = getattr(source, 'dropped', None)
    return None if dropped is None or selection.is_empty else dropped(selection)
