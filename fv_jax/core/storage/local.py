"""Files on local disks, NFS and mounted buckets: what is written appears by a rename."""

import contextlib
import logging
import os
import pathlib
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fv_jax.core.storage import local_search
from fv_jax.core.storage.store import FileInfo

log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**22


class LocalStore:
    """The operations of `core/files` on local paths."""

    @contextlib.contextmanager
    def atomic_write(self, path: Path, marker: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f'.{temporary_start(path)}.', dir=path.parent) as folder:
            yield (partial := Path(folder) / path.name)
            if path.is_dir():
                os.replace(path, Path(folder) / f'{path.name}.replaced')
            os.replace(partial, path)

    @contextlib.contextmanager
    def write_folder(self, path: Path, marker: str) -> Iterator[Path]:
        with self.atomic_write(path, marker) as partial:
            partial.mkdir()
            yield partial

    def create_exclusive(self, path: Path, data: bytes) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with open(descriptor, 'wb') as file:
            file.write(data)
        return True

    def update(self, path: Path, change: Callable[[bytes], bytes | None]) -> bool:
        if (data := change(path.read_bytes())) is None:
            return False
        with path.open('r+b') as file:
            file.write(data)
            file.truncate()
        return True

    def append(self, path: Path) -> 'LocalAppendFile':
        return LocalAppendFile(path)

    def is_same(self, path: Path, other: pathlib.Path | object) -> bool:
        return isinstance(other, pathlib.Path) and path.resolve() == other.resolve()

    def is_inside(self, path: Path, folder: pathlib.Path | object) -> bool:
        return isinstance(folder, pathlib.Path) and folder.resolve() in path.resolve().parents

    def folder_exists(self, folder: Path) -> bool:
        return folder.is_dir()

    def make_folder(self, folder: Path) -> list[Path]:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return made

    def remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            folder.rmdir()

    def remove_folder(self, folder: Path, marker: str, suffix: str) -> None:
        temporary = folder.with_name(folder.name + suffix)
        os.replace(folder, temporary)
        shutil.rmtree(temporary, ignore_errors=True)

    def check_writable(self, folder: Path) -> None:
        tempfile.TemporaryFile(dir=folder).close()

    def check_reachable(self, path: Path) -> None:
        pass

    def info(self, path: Path) -> FileInfo:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(f'{path}: is a folder')
        return FileInfo(found.st_size, str(found.st_mtime_ns))

    def list_files(self, folder: Path) -> dict[str, FileInfo]:
        found = sorted(path for path in folder.rglob('*') if path.is_file())
        return {path.relative_to(folder).as_posix(): self.info(path) for path in found}

    def find_files(self, folder: Path, is_skipped: Callable[[str], bool]) -> tuple[dict[str, FileInfo], dict[str, str]]:
        unread: dict[str, str] = {}
        return dict(local_search.find_files(folder, is_skipped, unread)), unread

    def checksum(self, path: Path, info: FileInfo) -> int:
        value = 0
        with path.open('rb') as file:
            while block := file.read(_BLOCK_BYTES):
                value = zlib.crc32(block, value)
        return value

    def download(self, path: Path, target: pathlib.Path, info: FileInfo | None) -> None:
        shutil.copyfile(path, target)


def temporary_start(path: Path) -> str:
    """Returns the start of the name of the temporary folder of an `atomic_write` to this path."""
    return path.stem[:50]  # a name may have 255 bytes, and a character has up to 4


class LocalAppendFile:
    """A file whose data is on disk when `add` returns. What a full disk refuses is written with what comes next."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open('ab', buffering=0)
        self._end, self._pending = self._file.tell(), b''

    def add(self, data: bytes) -> None:
        self._pending += data
        try:
            # A part of a line that an earlier write left is overwritten.
            self._file.truncate(self._end)
            written = self._file.write(self._pending)
        except OSError as error:
            return self._warn(error.strerror or str(error))
        if written != len(self._pending):
            return self._warn('the disk is full')
        self._end, self._pending = self._end + written, b''

    def _warn(self, why: str) -> None:
        log.warning(f'{self._path}: cannot be written ({why}); {len(self._pending)} bytes are kept in memory')

    def flush(self) -> None:
        pass  # `add` has written it

    def close(self) -> None:
        if self._pending:
            self.add(b'')
        self._file.close()
        if self._pending:
            raise OSError(f'{self._path}: {len(self._pending)} bytes could not be written')
