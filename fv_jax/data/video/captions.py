"""Captions of videos and images, from text files beside them.

They are searched in this order: `clip.txt` beside `clip.mp4`; in the video's folder the tables captions.json,
captions.jsonl, captions.csv, captions.tsv, metadata.jsonl and metadata.csv; the same tables in the folder above, up to
the root, where names are paths from there.

captions.json is a map of file name to text, or a list of {"file": ..., "caption": ...}; a line of .jsonl is one such
object; .csv and .tsv have a header with such columns, and commas, semicolons or tabs between them. Names are with or
without the extension, and compared in Unicode's form NFC; slashes may be backslashes, and paths absolute.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from fv_jax.core.files import is_file, list_folder
from fv_jax.core.paths import StoragePath
from fv_jax.data.folders import name_some
from fv_jax.data.video.caption_tables import TABLES, CaptionTable, normalize_name, read_caption_file, read_table


class SidecarError(ValueError):
    """Raised for a .txt file of one video that cannot be read."""


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder. files: normalized name -> path. tables: those that are used first at the front."""

    files: dict[str, StoragePath]
    tables: list[CaptionTable]


class Captions:
    """The captions of the videos under `root`. Raises ValueError, naming the file, for one that cannot be read."""

    def __init__(self, root: StoragePath):
        self._root = root
        self._folders: dict[StoragePath, _Folder] = {}

    def find(self, video: StoragePath) -> str | None:
        """Returns the caption of a video under the root, or None."""
        if sidecar := self._find_sidecar(video):
            return _read_sidecar(sidecar) or None
        return next((table.texts[key] or None for table, key in self._find_rows(video)), None)

    def describe_problems(self, videos: Iterable[StoragePath]) -> list[str]:
        """Describes rows without a video and videos with several captions, in one line for each table and kind.

        Args:
          videos: all under the root.
        """
        used: dict[StoragePath, set[str]] = collections.defaultdict(set)
        several: dict[tuple[StoragePath, str], list[str]] = collections.defaultdict(list)
        for video in videos:
            sidecar, rows = self._find_sidecar(video), list(self._find_rows(video))
            for table, key in rows:
                used[table.path].add(key)
                first, first_key = rows[0]
                if sidecar:
                    several[table.path, 'also have a .txt, which is used'].append(video.name)
                elif table.texts[key] != first.texts[first_key]:
                    several[table.path, f'have another caption in {first.path}, which is used'].append(video.name)
        tables = [table for folder in self._folders.values() for table in folder.tables]
        lines = [line for table in tables for line in _describe_table(table, used[table.path])]
        return lines + [
            f'{path}: {_count(names, "file")} {what}: {name_some(names)}' for (path, what), names in several.items()
        ]

    def _find_sidecar(self, video: StoragePath) -> StoragePath | None:
        name = normalize_name(video.with_suffix('.txt').name)
        path = self._open_folder(video.parent).files.get(name)
        return path if path is not None and is_file(path) else None

    def _find_rows(self, video: StoragePath) -> Iterator[tuple[CaptionTable, str]]:
        """Yields tables with a row of a video, and its key there; those that are used first at the front."""
        for folder in video.parents:
            name = normalize_name(video.relative_to(folder).as_posix())
            stem = normalize_name(video.relative_to(folder).with_suffix('').as_posix())
            for table in self._open_folder(folder).tables:
                yield from ((table, key) for key in (name, stem) if key in table.texts)
            if folder == self._root:
                return

    def _open_folder(self, folder: StoragePath) -> _Folder:
        if folder not in self._folders:
            found = {normalize_name(path.name): path for path in sorted(list_folder(folder))}
            tables = [read_table(found[name]) for name in TABLES if name in found and is_file(found[name])]
            self._folders[folder] = _Folder(found, tables)
        return self._folders[folder]


def _read_sidecar(path: StoragePath) -> str:
    try:
        return read_caption_file(path).strip()
    except (ValueError, PermissionError) as error:
        raise SidecarError(str(error)) from None


def _describe_table(table: CaptionTable, used: set[str]) -> Iterator[str]:
    unused = [name for name in table.texts if name not in used]
    if unused:
        yield f'{table.path}: {_count(unused, "row")} have no file: {name_some(unused)}'
    if table.repeated:
        names = [f'{name} ({", ".join(places)})' for name, places in table.repeated.items()]
        yield f'{table.path}: {_count(names, "file")} have several rows, the last of which is used: {name_some(names)}'
    if table.unused:
        rows = _count(table.unused, 'row')
        yield f'{table.path}: {rows} have no file name or no text and are not used: {name_some(table.unused)}'


def _count(names: Sequence[str], what: str) -> str:
    return f'{len(names)} {what}(s)'
