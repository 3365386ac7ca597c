"""Finds files in local folders, following links to folders."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fv_jax.core.storage.store import FileInfo


def find_files(root: Path, is_skipped: Callable[[str], bool], unread: dict[str, str]) -> Iterator[tuple[str, FileInfo]]:
    """Yields relative name and info of the files below a folder.

    Each folder is read once, under its own name rather than by a link to it, and never by a link to a folder that the
    link is in.

    Args:
      root: the folder.
      is_skipped: whether files and folders of a name (its last part) are not of interest.
      unread: is extended by what cannot be read: relative name -> reason.
    """
    seen: set[str] = set()
    folders, links = [root], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen or (folder != root and _is_parent(real, folder)):
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted((entry for entry in found if not is_skipped(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            unread[folder.relative_to(root).as_posix()] = error.strerror or str(error)
            continue
        for entry in entries:
            path = folder / entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
                continue
            name = path.relative_to(root).as_posix()
            try:
                yield name, _file_info(path)
            except OSError as error:
                unread[name] = error.strerror or str(error)


def _is_parent(real: str, link: Path) -> bool:
    """Returns whether a link is in the folder that it links to."""
    parent = os.path.realpath(link.parent)
    return link.is_symlink() and f'{parent}/'.startswith(f'{real.rstrip("/")}/')


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file_info(path: Path) -> FileInfo:
    """Returns what is known of a file without reading it. Raises OSError for what is no file, or a broken link."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError('is not a regular file')
    return FileInfo(found.st_size, str(found.st_mtime_ns))
