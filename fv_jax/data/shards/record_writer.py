"""Writes a set of shards, its index NAME.json and its manifest NAME.parquet, all of them or none."""

import array
import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.shards import manifest
from fv_jax.data.shards.records import encode_record, first_line, record_size
from fv_jax.data.shards.shard_files import SHARD, shard_name


class ShardWriter:
    """Writes one shard; use it as a context manager. All methods raise OSError if it cannot be written."""

    def __init__(self, path: Path):
        """Opens the file, a local one."""
        self._path = path
        with _disk_errors():
            # One record per group, so that each can be read alone; mp4 and latents do not compress further.
            self._writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')

    def write(self, data: bytes) -> None:
        """Appends an encoded record."""
        with _disk_errors():
            self._writer.write(data)

    def close(self) -> int:
        """Completes the file and returns its size in bytes."""
        with _disk_errors():
            self._writer.close()
        return self._path.stat().st_size

    def __enter__(self) -> 'ShardWriter':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            with contextlib.suppress(OSError):
                self.close()


class RecordWriter:
    """Writes records to shards of at most `shard_records` records; use it as a context manager.

    The shards appear in `folder` only if the block ends without an exception, together with the manifest NAME.parquet
    and `NAME.json` = {'name', 'records', **summary}. On an exception (Ctrl-C included) everything written is removed. A
    killed process (kill -9) leaves a hidden .NAME.*.partial folder, which can be deleted.

    Attributes:
      summary: JSON values that are added to NAME.json.
    """

    def __init__(self, folder: StoragePath, name: str, shard_records: int = 256, overwrite: bool = False):
        """Args:
          folder: created if it does not exist; in object storage every shard is uploaded when it is complete.
          name: the first part of the shards' names.
          shard_records: records per shard.
          overwrite: whether to replace shards of the same name.

        Raises:
          ValueError: shards of this name exist and may not be overwritten.
        """
        require(shard_records >= 1, f'shard_records={shard_records}: must be at least 1')
        self.summary: dict[str, Any] = {}
        self._folder, self._name, self._shard_records = folder, name, shard_records
        self._counts: list[int] = []
        self._writer: ShardWriter | None = None
        self._shard = contextlib.ExitStack()  # open while the current shard is written
        # Of the current shard: frames, height and width of its records, one after another, and their keys.
        self._sizes, self._keys = array.array('i'), set()
        present = self._present()
        require(
            not present or overwrite,
            f'{folder}: already holds {len(present)} shard(s) named {name}; choose another folder or overwrite them '
            '(--overwrite)',
        )

    @property
    def records(self) -> int:
        """The number of records written so far."""
        return sum(self._counts)

    @property
    def shards(self) -> list[StoragePath]:
        """The final paths of the shards written so far."""
        count = len(self._counts)
        return [self._folder / shard_name(self._name, i, count) for i in range(count)]

    def _present(self) -> list[StoragePath]:
        found = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        return [path for path in found if (m := SHARD.fullmatch(path.name)) and m['name'] == self._name]

    def __enter__(self) -> 'RecordWriter':
        self._made = files.make_folder(self._folder)
        self._temporary = self._folder / f'.{self._name}.{secrets.token_hex(4)}.partial'
        self._temporary.mkdir()
        self._manifest_file = contextlib.ExitStack()
        path = self._manifest_file.enter_context(files.atomic_write(self._temporary / 'manifest'))
        self._manifest = manifest.ManifestWriter(path)
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record. Raises OSError if it cannot be written."""
        data = encode_record(record)
        if self._writer is None or self._counts[-1] >= self._shard_records:
            self._close()
            path = self._shard.enter_context(files.atomic_write(self._temporary / str(len(self._counts))))
            self._writer = ShardWriter(path)
            self._counts.append(0)
        self._writer.write(data)
        self._counts[-1] += 1
        self._sizes.extend(record_size(record) or (0, 0, 0))
        self._keys.update(record)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            size = writer.close()
            frames, height, width = np.array(self._sizes, np.int32).reshape(-1, 3).T
            self._manifest.add(size, {'frames': frames, 'height': height, 'width': width}, self._keys)
            self._shard.close()
            self._sizes, self._keys = array.array('i'), set()

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
                    self._manifest.close(self._name)
        finally:
            with contextlib.suppress(OSError):
                self._manifest_file.close()
            with contextlib.suppress(OSError):
                files.remove_folder(self._temporary)
            if not done:
                files.remove_empty(self._made)

    def _publish(self) -> None:
        """Replaces the old shards by the new ones; if that is interrupted, restores the old ones."""
        self._manifest.close(self._name)
        self._manifest_file.close()
        index = {'name': self._name, 'records': self.records, **self.summary}
        text = json.dumps(index, indent=1, ensure_ascii=False) + '\n'
        # Names of files may hold bytes that are not UTF-8; they become escapes of JSON.
        files.write_bytes(self._temporary / 'index', text.encode(errors='backslashreplace'))
        index_path, manifest_path = (self._folder / f'{self._name}{end}' for end in ('.json', manifest.SUFFIX))
        old = [*self._present(), index_path, manifest_path]
        moves = [(path, self._temporary / path.name) for path in old if path.exists()]
        moves += [(self._temporary / str(i), path) for i, path in enumerate(self.shards)]
        moves += [(self._temporary / 'manifest', manifest_path), (self._temporary / 'index', index_path)]
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
        raise OSError(first_line(error)) from None
