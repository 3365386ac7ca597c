"""The protocol of the two kinds of storage: `local.LocalStore` and `objects.ObjectStore`."""

import dataclasses
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Path = Any  # pathlib.Path for a LocalStore, epath.Path for an ObjectStore


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """What a listing states of a file, without reading it.

    Attributes:
      size: in bytes.
      version: differs after each write (generation, ETag, or the time of modification).
      checksum: of the content, as the store computed it ('crc32c:...', 'etag:...'); '' for a local file.
    """

    size: int
    version: str
    checksum: str = ''


class AppendFile(Protocol):
    """A file that grows."""

    def add(self, data: bytes) -> None:
        """Appends data. What cannot be written is kept, and written later; a warning says so."""

    def flush(self) -> None:
        """Writes what was added now. Raises OSError, also for what an object store did not take."""

    def close(self) -> None:
        """Raises OSError when data remains that cannot be written."""


class Store(Protocol):
    """The operations of `core/files`, where they are described."""

    def atomic_write(self, path: Path, marker: str) -> AbstractContextManager[pathlib.Path]: ...

    def write_folder(self, path: Path, marker: str) -> AbstractContextManager[Path]: ...

    def create_exclusive(self, path: Path, data: bytes) -> bool: ...

    def update(self, path: Path, change: Callable[[bytes], bytes | None]) -> bool: ...

    def append(self, path: Path) -> AppendFile: ...

    def is_same(self, path: Path, other: Path) -> bool: ...

    def is_inside(self, path: Path, folder: Path) -> bool: ...

    def folder_exists(self, folder: Path) -> bool: ...

    def make_folder(self, folder: Path) -> list[Path]: ...

    def remove_empty(self, folder: Path) -> None: ...

    def remove_folder(self, folder: Path, marker: str, suffix: str) -> None: ...

    def check_writable(self, folder: Path) -> None: ...

    def check_reachable(self, path: Path) -> None: ...

    def info(self, path: Path) -> FileInfo: ...

    def list_files(self, folder: Path) -> dict[str, FileInfo]: ...

    def find_files(
        self, folder: Path, is_skipped: Callable[[str], bool]
    ) -> tuple[dict[str, FileInfo], dict[str, str]]: ...

    def checksum(self, path: Path, info: FileInfo) -> str | int: ...

    def download(self, path: Path, target: pathlib.Path, info: FileInfo | None) -> None: ...
