"""Files and folders, local or in object storage: atomic writes, exclusive creation, listings, downloads.

The functions take `StoragePath`s (`core/paths`) and call the store of the path's kind (`core/storage`). What the
methods of both kinds of path do alike (`exists`, `is_dir`, `iterdir`, `glob`, `read_text`, `read_bytes`, `unlink`) is
called on the path itself. All raise OSError.
"""

import concurrent.futures
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from fv_jax.core import hub
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.core.storage.local import LocalStore, temporary_start
from fv_jax.core.storage.objects import PROBE, ObjectStore
from fv_jax.core.storage.store import AppendFile, FileInfo, Store

T = TypeVar('T')

_LOCAL, _OBJECTS = LocalStore(), ObjectStore()
_THREADS = 16


def _store(path: StoragePath) -> Store:
    return _OBJECTS if is_remote(path) else _LOCAL


def is_remote(path: StoragePath) -> bool:
    """Returns whether a path is in object storage."""
    return not isinstance(path, pathlib.Path)


def check_reachable(path: StoragePath) -> None:
    """Raises OSError, within seconds, when the bucket of a path does not exist, does not answer or refuses to."""
    _store(path).check_reachable(path)


def resolve_path(text: str | os.PathLike[str]) -> StoragePath:
    """Returns the path that a text names (`as_path`), whose bucket can be reached: for functions that users call.

    Raises:
      ValueError: see `as_path`.
      OSError: see `check_reachable`.
    """
    path = as_path(text)
    check_reachable(path)
    return path


def resolve_weights(name: str | os.PathLike[str]) -> StoragePath:
    """Returns the path of weights, as `resolve_path`; they may be on the Hub (`hub.weights_path`, and its errors)."""
    path = hub.weights_path(name)
    check_reachable(path)
    return path


def map_paths(function: Callable[[StoragePath], T], paths: Iterable[StoragePath]) -> list[T]:
    """Returns function(path) of all paths, in order; several are waited for at a time.

    Raises what the function raises, for the first path for which it does.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, paths))


def check_writable(folder: StoragePath) -> None:
    """Writes and removes a small file in a folder. Raises OSError."""
    _store(folder).check_writable(folder)


def is_same(path: StoragePath, other: StoragePath) -> bool:
    """Returns whether two paths name the same file or folder."""
    return _store(path).is_same(path, other)


def is_inside(path: StoragePath, folder: StoragePath) -> bool:
    """Returns whether a path is in a folder or one of its subfolders."""
    return _store(path).is_inside(path, folder)


def folder_exists(folder: StoragePath) -> bool:
    """Returns whether files can be created in a folder without making it: a local one exists, of objects every one."""
    return _store(folder).folder_exists(folder)


def make_folder(folder: StoragePath) -> list[StoragePath]:
    """Makes a folder with its parents; returns those that did not exist, the innermost first. Raises OSError."""
    return _store(folder).make_folder(folder)


def remove_empty(folders: Iterable[StoragePath]) -> None:
    """Removes the folders that are empty, in this order."""
    for folder in folders:
        _store(folder).remove_empty(folder)


def remove_folder(folder: StoragePath, marker: str = '', suffix: str = '.removed') -> None:
    """Removes a folder and everything in it, so that a killed process leaves none that looks complete.

    Args:
      folder: exists.
      marker: the file without which a folder of objects counts as incomplete; it is removed first.
      suffix: is appended to the name of a local folder before its files are removed.
    """
    _store(folder).remove_folder(folder, marker, suffix)


def info(path: StoragePath) -> FileInfo:
    """Returns size and version of a file, without reading it. Raises FileNotFoundError, IsADirectoryError."""
    return _store(path).info(path)


def is_file(path: StoragePath) -> bool:
    """Returns whether a file exists, by one look; the method of the path takes two."""
    try:
        info(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return True


def list_folder(folder: StoragePath) -> list[StoragePath]:
    """Lists the files and folders in a folder, without what a killed `check_writable` left; empty if it is missing."""
    return [path for path in folder.iterdir() if path.name != PROBE] if folder.is_dir() else []


def list_files(folder: StoragePath) -> dict[str, FileInfo]:
    """Lists all files in a folder and its subfolders: relative name -> what is known without reading, sorted by name.

    Empty if the folder does not exist.
    """
    return _store(folder).list_files(folder)


def find_files(folder: StoragePath, is_skipped: Callable[[str], bool]) -> tuple[dict[str, FileInfo], dict[str, str]]:
    """Lists files of a user's folder and its subfolders, in no order. Links to folders are followed, each folder once.

    Args:
      folder: the folder.
      is_skipped: whether files and folders of a name (its last part) are not read.

    Returns:
      Relative name -> what is known without reading; and relative name -> reason, of what cannot be read.
    """
    return _store(folder).find_files(folder, is_skipped)


def checksums(folder: StoragePath) -> dict[str, tuple[int, str | int]]:
    """Returns relative name -> (size, checksum) of all files in a folder.

    Local files are read (CRC-32); those of an object store have the checksums that the store computed.
    """
    store, found = _store(folder), list_files(folder)
    return {name: (info.size, store.checksum(folder / name, info)) for name, info in found.items()}


def create_exclusive(path: StoragePath, data: bytes) -> bool:
    """Creates a file with this content unless it exists; returns whether it was created. Atomic, also on NFS."""
    return _store(path).create_exclusive(path, data)


def update(path: StoragePath, change: Callable[[bytes], bytes | None]) -> bool:
    """Reads a small file and writes what `change` makes of its content; returns whether that was written.

    In object storage it is written only if nobody has written the object meanwhile. A local file is written in place,
    which other hosts see when they open it again, also on NFS; of several processes at once the last one remains.

    Args:
      path: exists.
      change: content -> new content; None leaves the file alone.
    """
    return _store(path).update(path, change)


def append_to(path: StoragePath) -> AppendFile:
    """Opens a file to append to; it is created if it does not exist.

    A local file has the data when `add` returns; an object at most ten seconds later.
    """
    return _store(path).append(path)


def download(path: StoragePath, target: pathlib.Path, info: FileInfo | None = None) -> None:
    """Copies a file to a local one.

    Args:
      path: the file.
      target: not atomically written.
      info: of the version that is expected; None takes the present one.

    Raises:
      OSError: it cannot be read, or is not that version any more.
    """
    _store(path).download(path, target, info)


def atomic_write(path: StoragePath, marker: str = '') -> AbstractContextManager[pathlib.Path]:
    """A context that yields a local temporary path; the file or folder written there replaces `path` if nothing raises.

    Until then whatever exists at `path` stays. The temporary path has the same name, in a new folder: beside `path`
    where that is local. An object is replaced at once; of a folder of objects the files are uploaded one by one.

    Args:
      path: the folder that it is in must exist.
      marker: of a folder, the name of the file without which readers take it for incomplete; uploaded last.
    """
    return _store(path).atomic_write(path, marker)


def write_folder(path: StoragePath, marker: str) -> AbstractContextManager[StoragePath]:
    """A context that yields the folder to write a large folder into, which is not copied then.

    A local one replaces `path` if nothing raises, as of `atomic_write`. In object storage it is `path` itself, whose
    files are removed before, and again if something raises.

    Args:
      path: the folder that it is in must exist.
      marker: the file without which readers take it for incomplete; the caller writes it last.
    """
    return _store(path).write_folder(path, marker)


def partial_of(path: StoragePath) -> str:
    """Returns the start of the name of the file or folder whose `atomic_write` made a temporary folder, '' if none."""
    match = re.fullmatch(r'\.(.*)\.[a-z0-9_]{8}', path.name, re.DOTALL)
    return match[1] if match and path.is_dir() else ''


def remove_partial(paths: Iterable[StoragePath]) -> None:
    """Removes the temporary folders that `atomic_write` to these paths left when the process was killed."""
    starts: dict[pathlib.Path, set[str]] = {}
    for path in paths:
        if not is_remote(path):
            starts.setdefault(path.parent, set()).add(temporary_start(path))
    for parent, of_parent in starts.items():
        for path in parent.glob('.*'):
            if partial_of(path) in of_parent:
                shutil.rmtree(path)


def format_bytes(size: float) -> str:
    """Formats a number of bytes: '712 B', '3.24 MB', '12.3 GB'."""
    for unit in ('B', 'kB', 'MB'):
        if size < 1000:
            return f'{size:.3g} {unit}'
        size /= 1000
    return f'{size:.4g} GB'


def read_text(path: StoragePath) -> str:
    """Reads a UTF-8 text, with or without a byte order mark; every end of a line becomes a newline.

    Raises:
      OSError: it cannot be read.
      UnicodeDecodeError: it is not UTF-8.
    """
    return io.TextIOWrapper(io.BytesIO(path.read_bytes()), encoding='utf-8-sig').read()


def write_bytes(path: StoragePath, data: bytes) -> None:
    """Writes a file atomically. Raises OSError."""
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def write_text(path: StoragePath, text: str) -> None:
    """Writes a UTF-8 text file atomically. Raises OSError."""
    write_bytes(path, text.encode())


def write_json(path: StoragePath, value: Any) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def parse_json(text: str | bytes, make_object: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Parses a JSON text, and makes an object of the names and values of each one in it.

    Raises ValueError, also where it is nested too deeply to be parsed.
    """
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError:
        raise ValueError('nested too deeply') from None
