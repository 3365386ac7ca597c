"""Captions of videos, from text files beside them.

They are searched in this order: `clip.txt` beside `clip.mp4`; in the video's folder captions.json, a map of
file name to text or a list of {"file": ..., "caption": ...}; captions.csv, with a header that has such columns. Names
are with or without the extension. The same captions.* files in the folder above, up to the root, name files by their
path from there.
"""

import csv
import json
from collections.abc import Mapping

from fv_jax.core.files import parse_json, read_text
from fv_jax.core.paths import StoragePath

_FILE_KEYS = ('file', 'file_name', 'filename', 'video', 'path', 'name')
_TEXT_KEYS = ('caption', 'text', 'prompt')


class Captions:
    """The captions of the videos under `root`. Raises ValueError, naming the file, for one that cannot be read."""

    def __init__(self, root: StoragePath):
        self._root = root
        self._tables: dict[StoragePath, dict[str, str]] = {}

    def find(self, video: StoragePath) -> str | None:
        """Returns the caption of a video under the root, or None."""
        sidecar = video.with_suffix('.txt')
        if sidecar.is_file():
            return _read(sidecar).strip() or None
        for folder in video.parents:
            name = video.relative_to(folder)
            table = self._table(folder)
            for key in (name.as_posix(), name.with_suffix('').as_posix()):
                if key in table:
                    return table[key] or None
            if folder == self._root:
                break
        return None

    def _table(self, folder: StoragePath) -> dict[str, str]:
        if folder not in self._tables:
            table: dict[str, str] = {}
            for name, read in (('captions.csv', _csv), ('captions.json', _json)):
                if (folder / name).is_file():
                    table |= read(folder / name)
            self._tables[folder] = table
        return self._tables[folder]


def _read(path: StoragePath) -> str:
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start})') from None


def _json(path: StoragePath) -> dict[str, str]:
    text = _read(path)
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}: not JSON (line {error.lineno}: {error.msg})') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    rows = content
    if isinstance(content, dict):
        rows = [{'file': name, 'caption': text} for name, text in content.items()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f'{path}: expected a map of file name to text, or a list of {{"file": ..., "caption": ...}}')
    return dict(_pair(path, row) for row in rows)


def _csv(path: StoragePath) -> dict[str, str]:
    return dict(_pair(path, row) for row in csv.DictReader(_read(path).splitlines()))


def _pair(path: StoragePath, row: Mapping[str, object]) -> tuple[str, str]:
    name = next((row[key] for key in _FILE_KEYS if key in row), None)
    text = next((row[key] for key in _TEXT_KEYS if key in row), None)
    if not isinstance(name, str) or not isinstance(text, str):
        columns = ', '.join(map(str, row))
        raise ValueError(
            f'{path}: every row needs a file name ({", ".join(_FILE_KEYS)}) and a text '
            f'({", ".join(_TEXT_KEYS)}), one has {columns}'
        )
    return name.strip(), text.strip()
