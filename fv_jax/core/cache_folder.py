"""The one cache folder of a user: where it is, what it holds, and its limit.

    FOLDER/lock                  held by the process that counts or removes items
    FOLDER/KIND/ID/entry.json    a copy of remote files: its key, bytes and when it was fetched; mtime is the last use
    FOLDER/KIND/ID/files/        the files
    FOLDER/KIND/ID.lock          shared by the processes that use the copy: it is not removed until they release it
    FOLDER/KIND/ID.partial/      a copy that is being fetched, under the lock ID.fetch; without that lock, a leftover
    FOLDER/KIND/ID.removed/      a copy that is being removed, under the lock of the folder
    FOLDER/choices/ID.json       microbatches and remat that a run was found to fit with; some bytes, never removed
    FOLDER/compiled/CPU/         JAX's compilation cache: NAME-cache, and NAME-atime where JAX itself limits its size

What a process has open or mapped in memory stays readable after its file was removed.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import platformdirs

from fv_jax.core.checks import require
from fv_jax.core.file_locks import acquire_lock, exclusive_lock, release_lock
from fv_jax.core.files import format_bytes, parse_json

VARIABLE = 'FV_JAX_CACHE'
LIMIT_VARIABLE = 'FV_JAX_CACHE_GB'
COMPILED = 'compiled'
CHOICES = 'choices'
COPIES = ('files', 'shards')  # kinds of copies of remote files
KINDS = (*COPIES, COMPILED)
FOLDER_LOCK, INFO, FILES = 'lock', 'entry.json', 'files'
LOCK, FETCH, PARTIAL, REMOVED = '.lock', '.fetch', '.partial', '.removed'  # suffixes
GB = 1e9
# All official weights have 80 GB. Of a small disk, a part stays for what else is written to it.
DEFAULT_LIMIT, DEFAULT_SHARE = 200 * GB, 0.8


class CacheFullError(OSError):
    """Raised when something does not fit into the cache. The message is one line: value, limit and fix."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """The most bytes of the cache, or of a kind; `fix` ends the message about what does not fit: how to raise it."""

    bytes: float
    fix: str = f'set {LIMIT_VARIABLE} to more, or {VARIABLE} to a folder on a larger disk'


@dataclasses.dataclass(frozen=True)
class Item:
    """A copy of remote files, or a compiled program.

    Attributes:
      name: what it is: the key of a copy, the name of a program.
      used: time of its last use, in seconds since the epoch.
      is_partial: whether it is still being fetched, or is left by a process that was killed meanwhile.
    """

    kind: str
    name: str
    path: Path
    size: int
    used: float
    is_partial: bool = False


def cache_folder() -> Path:
    """Returns $FV_JAX_CACHE, or else `fv_jax` in the user's cache folder (~/.cache on Linux). It may not exist yet."""
    return Path(os.path.expanduser(os.environ.get(VARIABLE) or platformdirs.user_cache_dir('fv_jax')))


def make_cache_folder() -> Path:
    """Makes the cache folder. Raises OSError, one line, where it cannot be used."""
    folder = cache_folder()
    fix = f'set {VARIABLE} to the absolute path of a folder on a local disk that can be written'
    require(folder.is_absolute(), f'{folder}: cannot be the cache folder, its path is not absolute; {fix}', OSError)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / FOLDER_LOCK, os.O_RDWR | os.O_CREAT, 0o666))  # permissions alone do not show it
    except OSError as error:
        raise OSError(f'{folder}: cannot be the cache folder: {error.strerror}; {fix}') from None
    return folder


def read_limit(folder: Path, size: int) -> Limit:
    """Reads the limit of the cache, whose items have `size` bytes now.

    Returns:
      $FV_JAX_CACHE_GB. Else 200 GB, but at most four fifths of what its disk has free or in the cache.

    Raises:
      ValueError: the variable is not a number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return Limit(min(DEFAULT_LIMIT, DEFAULT_SHARE * (shutil.disk_usage(folder).free + size)))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    require(0 < limit < math.inf, f'{LIMIT_VARIABLE}={text}: must be a number of GB above 0, such as 200')
    return Limit(limit * GB)


def list_items(folder: Path) -> list[Item]:
    """Lists what the cache holds, least recently used first."""
    found = [*_list_compiled(folder / COMPILED)]
    for kind in COPIES:
        for path in (folder / kind).glob('*'):
            if path.suffix in ('', PARTIAL) and path.is_dir():
                found.append(_read_copy(kind, path))
    return _by_last_use(found)


def _by_last_use(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.used)


def _read_copy(kind: str, path: Path) -> Item:
    is_partial = path.suffix == PARTIAL
    try:
        info = parse_json((path / INFO).read_bytes())
        return Item(kind, info['key'], path, info['bytes'], (path / INFO).stat().st_mtime, is_partial)
    except (OSError, ValueError, LookupError, TypeError):  # removed meanwhile, or damaged
        return Item(kind, path.name, path, folder_size(path), 0.0, is_partial)


def _list_compiled(folder: Path) -> Iterator[Item]:
    for path in folder.glob('*/*-cache'):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # removed meanwhile
        # JAX notes the last use only where it limits the size itself; file systems note it once a day, or never.
        used = max(status.st_mtime, status.st_atime)
        yield Item(COMPILED, path.name.removesuffix('-cache'), path, status.st_size, used)


def folder_size(folder: Path) -> int:
    """Returns the bytes of all files in a folder; those that are removed meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def trim(limit: float | None = None, kinds: Sequence[str] = KINDS) -> tuple[list[Item], list[Item]]:
    """Removes items, least recently used first, until those that remain fit; copies in use remain.

    Args:
      limit: the most bytes that items of these kinds may have; None is the limit of the cache.
      kinds: the kinds that are counted and removed.

    Returns:
      The items that were removed, and those that remain.

    Raises:
      OSError: the cache folder cannot be used.
      ValueError: FV_JAX_CACHE_GB is not a number above 0.
    """
    folder = make_cache_folder()
    with exclusive_lock(folder / FOLDER_LOCK):
        items = [item for item in _remove_leftovers(folder) if item.kind in kinds]
        return _trim(items, read_limit(folder, total_size(items)).bytes if limit is None else limit)


def make_room(folder: Path, kind: str, key: str, size: int, limit: Limit | None) -> None:
    """Removes items, least recently used first, until `size` more bytes fit; the caller holds the folder's lock.

    Args:
      folder: the cache folder.
      kind: the kind of the new item.
      key: its name, for messages.
      size: its bytes.
      limit: of its kind; None is none but that of the cache.

    Raises:
      CacheFullError: it does not fit, also without all that is not in use. Nothing is removed if it never fits.
    """
    items = _remove_leftovers(folder)
    limits = [(limit, (kind,))] if limit else []
    limits.append((read_limit(folder, total_size(items)), KINDS))
    what = f'{key}: has {format_bytes(size)}, and'
    for bound, _ in limits:
        text = f'{what} the limit of the cache {folder} is {format_bytes(bound.bytes)}; {bound.fix}'
        require(size <= bound.bytes, text, CacheFullError)
    require(shutil.disk_usage(folder).free + total_size(items) >= size, disk_is_full(folder, key), CacheFullError)
    for bound, kinds in limits:
        removed, left = _trim([item for item in items if item.kind in kinds], bound.bytes - size)
        items = _by_last_use(set(items).difference(removed))
        in_use = f'{format_bytes(total_size(left))} of the {format_bytes(bound.bytes)} of the cache {folder} are in use'
        require(total_size(left) + size <= bound.bytes, f'{what} {in_use}; {bound.fix}', CacheFullError)
    for item in items:
        if shutil.disk_usage(folder).free < size:
            _remove(item)
    require(shutil.disk_usage(folder).free >= size, disk_is_full(folder, key), CacheFullError)


def total_size(items: Iterable[Item]) -> int:
    """Returns the bytes of items."""
    return sum(item.size for item in items)


def disk_is_full(folder: Path, key: str) -> str:
    """Returns the message for a cache whose disk is full."""
    free = format_bytes(shutil.disk_usage(folder).free)
    return (
        f'{key}: does not fit on the disk of the cache {folder}, which has {free} free; free some of it, or set '
        f'{VARIABLE} to a folder on a larger disk'
    )


def _trim(items: Sequence[Item], limit: float) -> tuple[list[Item], list[Item]]:
    """Removes the first items until the others have at most `limit` bytes; returns those removed, and the others."""
    total, removed, left = total_size(items), [], []
    for item in items:
        if total > limit and _remove(item):
            total -= item.size
            removed.append(item)
        else:
            left.append(item)
    return removed, left


def _remove_leftovers(folder: Path) -> list[Item]:
    """Removes what killed processes left incomplete, and lists the rest."""
    for kind in COPIES:
        for path in (folder / kind).glob(f'*{REMOVED}'):
            shutil.rmtree(path)
    return [item for item in list_items(folder) if not (item.is_partial and _remove(item))]


def _remove(item: Item) -> bool:
    """Removes an item; returns False for one that is in use or being fetched. The caller holds the folder's lock."""
    if item.kind == COMPILED:
        # JAX lists the programs and then reads their -atime, and compiles what it does not find.
        item.path.unlink(missing_ok=True)
        item.path.with_name(f'{item.name}-atime').unlink(missing_ok=True)
        return True
    lock = item.path.with_suffix(FETCH if item.is_partial else LOCK)
    descriptor = acquire_lock(lock, wait=False)
    if descriptor is None:
        return False
    try:
        remove_copy(item.path)
        lock.unlink()
    finally:
        release_lock(descriptor)
    return True


def remove_copy(path: Path) -> None:
    """Removes the folder of a copy, so that none finds a part of it. The caller holds the folder's lock."""
    removed = path.with_suffix(REMOVED)
    if removed.exists():
        shutil.rmtree(removed)  # left by a process that was killed
    if path.exists():
        os.replace(path, removed)
        shutil.rmtree(removed)
