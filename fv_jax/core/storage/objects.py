"""Objects in buckets: nothing can be renamed, so of a folder the file that completes it is uploaded last."""

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from etils.epath import Path

from fv_jax.core.storage import filesystems
from fv_jax.core.storage.append import RemoteAppendFile
from fv_jax.core.storage.store import FileInfo

BLOCK_BYTES = 2**25  # of one request of a download: what is lost when a connection breaks
_PARALLEL_REQUESTS = 8
REACH_S = 10.0  # how long a command waits at its start for a bucket that does not answer
PROBE = '.write-check'


class ObjectStore:
    """The operations of `core/files` on URLs."""

    @contextlib.contextmanager
    def atomic_write(self, path: Path, marker: str) -> Iterator[pathlib.Path]:
        with tempfile.TemporaryDirectory(prefix='fv_jax.') as folder:
            yield (partial := pathlib.Path(folder) / path.name)
            if partial.is_dir():
                self._upload_folder(partial, path, marker)
            else:
                _filesystem(path).put_file(str(partial), str(path))

    def _upload_folder(self, source: pathlib.Path, target: Path, marker: str) -> None:
        before = set(self.list_files(target))
        if marker in before:
            (target / marker).unlink()
        names = [path.relative_to(source).as_posix() for path in sorted(source.rglob('*')) if path.is_file()]
        for name in sorted(names, key=lambda name: name == marker):
            _filesystem(target).put_file(str(source / name), str(target / name))
        for name in before - set(names):
            (target / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def write_folder(self, path: Path, marker: str) -> Iterator[Path]:
        self.remove_folder(path, marker, '')
        try:
            yield path
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove_folder(path, marker, '')
            raise

    def create_exclusive(self, path: Path, data: bytes) -> bool:
        return self._write(path, data, '') is not None

    def update(self, path: Path, change: Callable[[bytes], bytes | None]) -> bool:
        version = self.info(path).version
        data = change(_filesystem(path).cat_file(str(path)))
        return data is not None and self._write(path, data, version) is not None

    def append(self, path: Path) -> RemoteAppendFile:
        version, before = '', b''
        with contextlib.suppress(FileNotFoundError):
            version = self.info(path).version
            before = _filesystem(path).cat_file(str(path))
        return RemoteAppendFile(str(path), before, version, functools.partial(self._write, path))

    def _write(self, path: Path, data: bytes, version: str) -> str | None:
        """Writes an object that is of this version, '' if it must not exist.

        Returns its new version; None if it is of another one.
        """
        filesystem = _filesystem(path)
        try:
            return filesystem.write_version(str(path), data, version)
        except (FileExistsError, FileNotFoundError):
            # Written by this call, if its answer was lost and the request repeated.
            with contextlib.suppress(FileNotFoundError):
                found = self.info(path).version
                return found if filesystem.cat_file(str(path)) == data else None
            return None

    def is_same(self, path: Path, other: Path) -> bool:
        return path == other

    def is_inside(self, path: Path, folder: Path) -> bool:
        return folder in path.parents

    def folder_exists(self, folder: Path) -> bool:
        return str(folder).partition('://')[2] != ''  # the bucket's name

    def make_folder(self, folder: Path) -> list[Path]:
        return []  # a folder exists as long as it has objects

    def remove_empty(self, folder: Path) -> None:
        pass

    def remove_folder(self, folder: Path, marker: str, suffix: str) -> None:
        if marker:
            with contextlib.suppress(FileNotFoundError):
                _filesystem(folder).rm_file(str(folder / marker))
        with contextlib.suppress(FileNotFoundError):
            _filesystem(folder).rm(str(folder), recursive=True)

    def check_writable(self, folder: Path) -> None:
        probe = folder / PROBE
        filesystem = _filesystem(folder)
        filesystem.pipe_file(str(probe), b'')
        filesystem.rm_file(str(probe))

    def check_reachable(self, path: Path) -> None:
        """Lists at most a few objects: it needs no right that reading does not need."""
        bucket = str(path).split('/')[2]
        filesystem = _filesystem(path, patience_s=REACH_S)
        try:
            filesystem.ls(f'{bucket}/{PROBE}')
        except FileNotFoundError:
            if not filesystem.exists(bucket):
                raise FileNotFoundError(f'{path}: bucket {bucket} does not exist') from None

    def info(self, path: Path) -> FileInfo:
        try:
            found = _filesystem(path).info(str(path))
        except FileNotFoundError:
            raise FileNotFoundError(f'{path}: does not exist') from None
        if found['type'] != 'file':
            raise IsADirectoryError(f'{path}: is a folder')
        return _file_info(found)

    def list_files(self, folder: Path) -> dict[str, FileInfo]:
        found = _filesystem(folder).find(str(folder), detail=True)
        start = len(str(folder).split('://')[1].rstrip('/')) + 1
        return {name[start:]: _file_info(info) for name, info in sorted(found.items()) if name[start:]}

    def find_files(self, folder: Path, is_skipped: Callable[[str], bool]) -> tuple[dict[str, FileInfo], dict[str, str]]:
        found = self.list_files(folder)
        return {name: info for name, info in found.items() if not any(map(is_skipped, name.split('/')))}, {}

    def checksum(self, path: Path, info: FileInfo) -> str:
        return info.checksum

    def download(self, path: Path, target: pathlib.Path, info: FileInfo | None) -> None:
        info = info or self.info(path)
        with target.open('wb') as file:
            if info.size:
                os.posix_fallocate(file.fileno(), 0, info.size)  # a full disk is found now
            with concurrent.futures.ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
                starts = range(0, info.size, BLOCK_BYTES)
                jobs = [pool.submit(_read_block, path, start, info.size, file.fileno()) for start in starts]
                for job in jobs:
                    job.result()
        if (found := self.info(path)) != info:
            raise OSError(f'{path}: was replaced while it was read (version {info.version}, now {found.version})')


def _filesystem(path: Path, **options: float) -> fsspec.AbstractFileSystem:
    return filesystems.open_filesystem(str(path).partition('://')[0], **options)


def _read_block(path: Path, start: int, size: int, descriptor: int) -> None:
    end = min(start + BLOCK_BYTES, size)
    data = _filesystem(path).cat_file(str(path), start=start, end=end)
    if len(data) != end - start:
        raise OSError(f'{path}: {len(data)} bytes were received instead of {end - start}; it was replaced meanwhile')
    os.pwrite(descriptor, data, start)


def _file_info(found: dict[str, Any]) -> FileInfo:
    """Reads what gcsfs and s3fs state of an object."""
    etag = str(found.get('etag') or found.get('ETag') or '').strip('"')
    checksum = f'crc32c:{found["crc32c"]}' if found.get('crc32c') else f'etag:{etag}'
    return FileInfo(int(found['size']), str(found.get('generation') or etag), checksum)
