"""Copies of remote files in the cache folder: each is fetched once per host, and not removed while it is used.

with open_entry('shards', url, size, fetch) as folder:
    reader = open(folder / 'shard')             # what is open or mapped stays readable after the context

folder = open_entry('files', url, size, fetch).folder    # for readers that open files later: until the process ends
"""

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from fv_jax.core.cache_folder import (
    COPIES,
    FETCH,
    FILES,
    FOLDER_LOCK,
    INFO,
    LOCK,
    PARTIAL,
    CacheFullError,
    Limit,
    disk_is_full,
    folder_size,
    make_cache_folder,
    make_room,
    remove_copy,
)
from fv_jax.core.file_locks import acquire_lock, exclusive_lock, release_lock
from fv_jax.core.files import parse_json, write_json
from fv_jax.core.hashing import fingerprint

log = logging.getLogger(__name__)

Fetch = Callable[[Path], None]  # writes the files into a new, empty folder


@dataclasses.dataclass
class Entry:
    """A copy of remote files that no process removes until it is closed, or until this process ends.

    Attributes:
      folder: what `fetch` wrote; read only.
    """

    folder: Path
    _lock: int | None  # a descriptor that is open on purpose: the system closes it at the end of the process

    def close(self) -> None:
        """Releases the entry, which may be removed from now on."""
        if self._lock is not None:
            with contextlib.suppress(FileNotFoundError):  # somebody removed the folder
                os.utime(self.folder.parent / INFO)
            release_lock(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_entry(kind: str, key: str, size: int, fetch: Fetch, *, limit: Limit | None = None) -> Entry:
    """Opens an entry of the cache, and fetches it first if it does not exist.

    While another process or thread of this host fetches the same entry, this one waits for it. To make room, entries
    that no process has open are removed, least recently used first.

    Args:
      kind: of COPIES.
      key: names the content: another content, such as another generation of an object, has another key.
      size: bytes that `fetch` will write, as far as they are known.
      fetch: called at most once; what it raises leaves nothing behind.
      limit: of all entries of this kind, besides that of the cache.

    Raises:
      CacheFullError: the entry does not fit into the cache, or the disk is full.
      OSError: the cache folder cannot be used.
      ValueError: FV_JAX_CACHE_GB is not a number above 0.
    """
    assert kind in COPIES, kind
    cache = make_cache_folder()
    path = cache / kind / fingerprint([key])
    if found := _find(path):
        return found
    with _full_disk(cache, key), _fetch_lock(path.with_suffix(FETCH), key):
        return _find(path) or _fetch(cache, path, key, size, fetch, limit)


@contextlib.contextmanager
def _full_disk(cache: Path, key: str) -> Iterator[None]:
    """A context that raises CacheFullError when the disk of the cache is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CacheFullError(disk_is_full(cache, key)) from None


@contextlib.contextmanager
def _fetch_lock(lock: Path, key: str) -> Iterator[None]:
    descriptor = acquire_lock(lock, wait=False)
    if descriptor is None:
        log.info(f'{key}: is being fetched by another process of this host; waiting for it')
        descriptor = acquire_lock(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        release_lock(descriptor)


def _find(path: Path) -> Entry | None:
    """Opens an entry that exists and whose files have the size that they had; else returns None."""
    if not path.exists():
        return None
    lock = acquire_lock(path.with_suffix(LOCK), shared=True)
    try:
        if parse_json((path / INFO).read_bytes())['bytes'] == folder_size(path / FILES):
            os.utime(path / INFO)
            found, lock = Entry(path / FILES, lock), None
            return found
    except (OSError, ValueError, LookupError, TypeError):
        pass  # it was removed, or is damaged
    finally:
        if lock is not None:
            release_lock(lock)
    return None


def _fetch(cache: Path, path: Path, key: str, size: int, fetch: Fetch, limit: Limit | None) -> Entry:
    """Fetches an entry under its lock FETCH."""
    partial = path.with_suffix(PARTIAL)
    kind = path.parent.name
    try:
        with exclusive_lock(cache / FOLDER_LOCK):
            for old in (path, partial):  # damaged, or left by a process that was killed
                remove_copy(old)
            make_room(cache, kind, key, size, limit)
            (partial / FILES).mkdir(parents=True)
            _describe(partial, key, size)  # others count its size from now on
        fetch(partial / FILES)
        _flush(partial / FILES)
        _describe(partial, key, folder_size(partial / FILES))
        with exclusive_lock(cache / FOLDER_LOCK):  # whoever counts finds it once
            lock = acquire_lock(path.with_suffix(LOCK), shared=True)
            os.replace(partial, path)
        return Entry(path / FILES, lock)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _describe(folder: Path, key: str, size: int) -> None:
    fetched = time.strftime('%Y-%m-%dT%H:%M:%S%z')
    write_json(folder / INFO, {'key': key, 'bytes': size, 'fetched': fetched})


def _flush(folder: Path) -> None:
    """Writes the files to the disk: a host that crashes must not find a complete entry with zeros in it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
