"""Records and the ArrayRecord shards that hold them.

A record is a msgpack map. Numbers, strings, bytes, booleans and None are stored as they are; an array
is stored as a map of its dtype's name, its shape and its bytes (row-major, little-endian), bfloat16
included. A record of a clip has the keys

  video         mp4 bytes (H.264), or an array uint8 FHWC
  fps           float, frames per second
  frames, height, width      ints
  source        name of the video file
  start_frame   index of its first frame there, counted at `fps`
  caption       string, or absent

and a record of cached latents has `z_high` (FHWC) and `z_low` (KFHWC) instead of `video`.

Shards are named NAME-00000-of-00003.array_record, with NAME.json beside them (how many records each holds, their sizes
as runs of [frames, height, width, count], and the summary of the writer). They are written under temporary
names and renamed when all of them are complete: a folder never holds an incomplete set.
"""

import contextlib
import json
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from array_record.python import array_record_module

from fv_jax.core.checks import error_context, require
from fv_jax.core.files import make_folder, parse_json, remove_empty

SUFFIX = '.array_record'
_SHARD = re.compile(r'(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.array_record')
_ARRAY_KEYS = {'dtype', 'shape', 'data'}
_EXTRA_DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16)}

Record = dict[str, Any]


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Encodes a record as msgpack bytes. Raises ValueError for a value that cannot be stored."""
    return msgpack.packb({key: _pack(key, value) for key, value in record.items()}, use_bin_type=True)


def decode_record(data: bytes) -> Record:
    """Inverts `encode_record`; arrays are writable. Raises ValueError if `data` is not a record."""
    with error_context('not a record: ', (ValueError, msgpack.UnpackException)):
        packed = msgpack.unpackb(data, raw=False)
    require(isinstance(packed, dict), f'not a record: expected a map, found {type(packed).__name__}')
    return {key: _unpack(key, value) for key, value in packed.items()}


_PLAIN = (bool, int, float, str, bytes)


def _pack(key: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind in 'biuf' else np.asarray(value)
    if isinstance(value, np.ndarray):
        _dtype(key, value.dtype.name)
        if sys.byteorder == 'big' or value.dtype.byteorder == '>':
            value = value.astype(value.dtype.newbyteorder('<'))
        return {'dtype': value.dtype.name, 'shape': list(value.shape), 'data': value.tobytes()}
    if value is None or isinstance(value, _PLAIN):
        return value
    raise ValueError(f'record[{key!r}]: cannot store a {type(value).__name__}; use an array, number, string or bytes')


def _unpack(key: str, value: Any) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if not (isinstance(value, dict) and set(value) == _ARRAY_KEYS):
        raise ValueError(f'record[{key!r}]: a {type(value).__name__}, which no record holds')
    name, shape, data = value['dtype'], value['shape'], value['data']
    if not (isinstance(name, str) and isinstance(data, bytes) and isinstance(shape, list)):
        raise ValueError(f'record[{key!r}]: not an array')
    require(all(isinstance(side, int) and side >= 0 for side in shape), f'record[{key!r}]: not an array')
    return np.frombuffer(bytearray(data), _dtype(key, name)).reshape(shape)


def _dtype(key: str, name: str) -> np.dtype:
    dtype = _EXTRA_DTYPES.get(name)
    if dtype is None:
        with contextlib.suppress(TypeError):
            dtype = np.dtype(name)
    require(
        dtype is not None and (dtype.kind in 'biuf' or name in _EXTRA_DTYPES),
        f'record[{key!r}]: arrays of dtype {name} are not supported; use bfloat16 or a numpy number type',
    )
    return dtype


def record_size(record: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Returns (frames, height, width) in pixels of the clip of a record, latents or not; None if it is unknown."""
    video = record.get('video')
    if isinstance(video, np.ndarray) and video.ndim == 4:
        return video.shape[:3]
    size = tuple(record.get(key) for key in ('frames', 'height', 'width'))
    return size if all(isinstance(value, int) for value in size) else None


def shard_path(folder: str | Path, name: str, index: int, count: int) -> Path:
    return Path(folder) / f'{name}-{index:05d}-of-{count:05d}{SUFFIX}'


def list_shards(folder: str | Path, name: str | None = None) -> list[str]:
    """Lists the complete sets of shards in a folder, in order.

    Args:
      folder: where a `RecordWriter` wrote.
      name: of one set; None lists all sets.

    Raises:
      ValueError: the folder does not exist, has no such shards, or lacks a shard of a set.
    """
    folder = Path(folder)
    require(folder.is_dir(), f'{folder}: no such folder')
    matches = [(path, _SHARD.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    found = [(path, m) for path, m in matches if m and name in (None, m['name'])]
    require(found, f'{folder}: holds no {name + "-" if name else ""}*{SUFFIX} shards; `prepare` writes them')
    sets: dict[tuple[str, int], set[int]] = {}
    for _, m in found:
        sets.setdefault((m['name'], int(m['count'])), set()).add(int(m['index']))
    for (set_name, count), present in sets.items():
        missing = sorted(set(range(count)) - present)
        if missing:
            lost = shard_path(folder, set_name, missing[0], count)
            raise ValueError(f'{lost}: missing; {len(present)} of {count} shards of {set_name!r} exist')
    return [str(path) for path, _ in found]


def set_name(shard: str | Path) -> str:
    """Returns the name of the set that a shard belongs to."""
    return _SHARD.fullmatch(Path(shard).name)['name']


def read_records(shards: Sequence[str | Path]) -> Iterator[Record]:
    """Yields every record of `shards` in order. Raises ValueError, naming the shard and the index."""
    for shard in shards:
        reader = _open(shard)
        try:
            for index in range(reader.num_records()):
                yield _read(reader, shard, index)
        finally:
            reader.close()


def read_index(shard: str | Path) -> dict[str, Any]:
    """Reads the NAME.json of the set that a shard belongs to; {} without one. Raises ValueError for an invalid one."""
    path = Path(shard)
    match = _SHARD.fullmatch(path.name)
    index = path.with_name(f'{match["name"]}.json') if match else None
    if index is None or not index.is_file():
        return {}
    with error_context(f'{index}: cannot be read: '):
        found = parse_json(index.read_text(encoding='utf-8'))
    require(isinstance(found, dict), f'{index}: must be a map (got {type(found).__name__})')
    for key, fits in _INDEX.items():
        require(found.get(key) is None or fits(found[key]), f'{index}: invalid {key!r}; prepare the clips again')
    return found


def _counts(value: Any, length: int | None = None) -> bool:
    """Returns whether a value is a list of non-negative integers, of this length if one is given."""
    fits = isinstance(value, list) and length in (None, len(value))
    return fits and all(type(x) is int and x >= 0 for x in value)


# The fields of an index that readers use, and their checks.
_INDEX = {
    'shards': lambda value: isinstance(value, dict) and _counts(list(value.values())),
    'sizes': lambda value: isinstance(value, list) and all(_counts(run, 4) for run in value),
    'config': lambda value: isinstance(value, dict),
    'records': lambda value: _counts([value]),
    'latents': lambda value: isinstance(value, dict),
    'text': lambda value: (
        isinstance(value, dict)
        and isinstance(value.get('digest'), str)
        and _counts([value.get('length'), value.get('dim')])
    ),
}


def count_records(shards: Sequence[str | Path]) -> int:
    """Counts the records of all `shards`. Raises ValueError naming a shard that cannot be opened."""
    total = 0
    for shard in shards:
        reader = _open(shard)
        total += reader.num_records()
        reader.close()
    return total


def _open(shard: str | Path) -> array_record_module.ArrayRecordReader:
    require(Path(shard).is_file(), f'{shard}: no such shard')
    try:
        reader = array_record_module.ArrayRecordReader(str(shard))
        if not reader.ok():
            reader.close()  # which raises what is wrong
        return reader
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'{shard}: cut off or not an ArrayRecord file: {_first_line(error)}') from None


def _read(reader: array_record_module.ArrayRecordReader, shard: str | Path, index: int) -> Record:
    try:
        return decode_record(reader.read([index])[0])
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f'{shard}, record {index}: damaged: {_first_line(error)}') from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition('\n')[0]


class RecordWriter:
    """Writes records to shards of at most `shard_records` records; use it as a context manager.

    The shards appear in `folder` only if the block ends without an exception, together with
    `NAME.json` = {'name', 'records', 'shards': {file: count}, **summary}. On an exception (Ctrl-C included) everything
    written is removed. A killed process (kill -9) leaves a hidden .NAME.*.partial folder, which can be deleted.

    Attributes:
      summary: JSON values that are added to NAME.json.
    """

    def __init__(self, folder: str | Path, name: str, shard_records: int = 256, overwrite: bool = False):
        """Args:
          folder: created if it does not exist.
          name: the first part of the shards' names.
          shard_records: records per shard.
          overwrite: whether to replace shards of the same name.

        Raises:
          ValueError: shards of this name exist and may not be overwritten.
        """
        require(shard_records >= 1, f'shard_records={shard_records}: must be at least 1')
        self.summary: dict[str, Any] = {}
        self._folder, self._name, self._shard_records = Path(folder), name, shard_records
        self._counts: list[int] = []
        self._sizes: list[list[int]] = []
        self._writer: Any = None
        present = self._present()
        require(
            not present or overwrite,
            f'{folder}: already holds {len(present)} shard(s) named {name}; overwrite them or choose another folder',
        )

    @property
    def records(self) -> int:
        """The number of records written so far."""
        return sum(self._counts)

    @property
    def shards(self) -> list[Path]:
        """The final paths of the shards written so far."""
        return [shard_path(self._folder, self._name, i, len(self._counts)) for i in range(len(self._counts))]

    def _present(self) -> list[Path]:
        files = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [path for path in files if (m := _SHARD.fullmatch(path.name)) and m['name'] == self._name]

    def __enter__(self) -> 'RecordWriter':
        self._made = make_folder(self._folder)
        self._temporary = self._folder / f'.{self._name}.{secrets.token_hex(4)}.partial'
        self._temporary.mkdir()
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record. Raises OSError if it cannot be written."""
        data = encode_record(record)
        with _disk_errors():
            if self._writer is None or self._counts[-1] >= self._shard_records:
                self._close()
                path = self._temporary / str(len(self._counts))
                # One record per group, so that each can be read alone; mp4 and latents do not compress further.
                self._writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
                self._counts.append(0)
            self._writer.write(data)
        self._counts[-1] += 1
        self._note_size(record_size(record) or (0, 0, 0))

    def _note_size(self, size: tuple[int, int, int]) -> None:
        if self._sizes and tuple(self._sizes[-1][:3]) == size:
            self._sizes[-1][3] += 1
        else:
            self._sizes.append([*size, 1])

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with _disk_errors():
                writer.close()

    def __exit__(self, kind, error, traceback) -> None:
        done = False
        try:
            if kind is None:
                self._close()
                self._publish()
                done = True
            else:
                with contextlib.suppress(OSError):
                    self._close()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)
            if not done:
                remove_empty(self._made)

    def _publish(self) -> None:
        """Replaces the old shards by the new ones; if that is interrupted, restores the old ones."""
        index = {
            'name': self._name,
            'records': self.records,
            'shards': {path.name: count for path, count in zip(self.shards, self._counts, strict=True)},
            'sizes': self._sizes,
            **self.summary,
        }
        (self._temporary / 'index').write_text(json.dumps(index, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        index_path = self._folder / f'{self._name}.json'
        moves = [(path, self._temporary / path.name) for path in [*self._present(), index_path] if path.exists()]
        moves += [(self._temporary / str(i), path) for i, path in enumerate(self.shards)]
        moves.append((self._temporary / 'index', index_path))
        done = []
        try:
            for source, target in moves:
                done.append((source, target))
                source.rename(target)
        except BaseException:
            for source, target in reversed(done):
                if target.exists() and not source.exists():
                    target.rename(source)
            raise


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """A context that raises OSError for a failed write, which the ArrayRecord library reports as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(_first_line(error)) from None
