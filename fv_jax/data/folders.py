"""The files of a folder of videos or images, as users have them: links, trash, hidden files, files of other kinds."""

import dataclasses
import logging
from collections.abc import Collection, Iterable

from fv_jax.core import files
from fv_jax.core.paths import StoragePath
from fv_jax.core.storage.store import FileInfo

log = logging.getLogger(__name__)

# Names of trash, thumbnails and resource forks, in lower case.
_TRASH = {
    *('@eadir', '@recycle', '#recycle', '#snapshot', '__macosx', '$recycle.bin', 'recycler', 'recycled'),
    *('lost+found', 'system volume information'),
}
_NAMED = 5  # names in one line
_LOGGED = 20  # lines about single files


@dataclasses.dataclass(frozen=True)
class Media:
    """The videos or images of a folder and its subfolders.

    Attributes:
      files: relative name -> what is known without reading, in the order of the names' parts.
      skipped: relative name -> why it is not among them, of what cannot be read and of media of other formats.
    """

    files: dict[str, FileInfo]
    skipped: dict[str, str]


def find_media(folder: StoragePath, suffixes: Collection[str], others: Collection[str]) -> Media:
    """Finds the videos or images in a folder and its subfolders.

    Hidden files and folders (.git, .Trash, ._clip.mp4) and those of trash and thumbnails are not read. Links to folders
    are followed, each folder once.

    Args:
      folder: local or remote.
      suffixes: of what is searched for, in lower case.
      others: suffixes of what a user may take for it, and is named.
    """
    found, unread = files.find_files(folder, is_hidden)
    skipped = {}
    for name, reason in unread.items():
        if _suffix(name) in suffixes or _suffix(name) in others or not _suffix(name):
            skipped[name] = reason
    for name in found:
        if _suffix(name) in others:
            skipped[name] = name_unread(name)
    taken = sorted((name for name in found if _suffix(name) in suffixes), key=lambda name: name.split('/'))
    return Media({name: found[name] for name in taken}, dict(sorted(skipped.items())))


def name_unread(name: str) -> str:
    """Returns why a file of another format is not read."""
    return f'{_suffix(name)[1:]} is not among the formats that are read; convert it'


def name_some(names: Iterable[str]) -> str:
    """Returns the first few names, and how many more there are: 'a, b, c, d, e and 7 more'."""
    names = list(names)
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(names[:_NAMED]) + more


def log_lines(lines: Iterable[str]) -> None:
    """Logs notes about single files: the first few, and how many more there are."""
    lines = list(lines)
    for line in lines[:_LOGGED]:
        log.info(f'note: {line}')
    if len(lines) > _LOGGED:
        log.info(f'note: and {len(lines) - _LOGGED} more')


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden, or trash or thumbnails."""
    return name.startswith('.') or name.lower() in _TRASH


def _suffix(name: str) -> str:
    """Returns '.mp4' of 'more/clip.MP4'; '' without one."""
    last = name.rpartition('/')[2]
    return f'.{last.rpartition(".")[2].lower()}' if '.' in last else ''
