"""Folders that are made and removed again; atomic writes; sizes in text; reading JSON that others wrote."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder with its parents; returns those that did not exist, the innermost first. Raises OSError."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the folders that are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A context that yields a temporary path; the file or folder written there replaces `path` if nothing raises.

    Until then whatever exists at `path` stays. The temporary path has the same name, in a new folder beside `path`.
    """
    with tempfile.TemporaryDirectory(prefix=f'.{_start(path)}.', dir=path.parent) as folder:
        yield (partial := Path(folder) / path.name)
        if path.is_dir():
            os.replace(path, Path(folder) / f'{path.name}.replaced')
        os.replace(partial, path)


def _start(path: Path) -> str:
    return path.stem[:50]  # a name may have 255 bytes, and a character has up to 4


def partial_of(path: Path) -> str:
    """Returns the start of the name of the file or folder whose `atomic_write` made a temporary folder, '' if none."""
    match = re.fullmatch(r'\.(.*)\.[a-z0-9_]{8}', path.name, re.DOTALL)
    return match[1] if match and path.is_dir() else ''


def remove_partial(paths: Iterable[Path]) -> None:
    """Removes the temporary folders that `atomic_write` to these paths left when the process was killed."""
    starts: dict[Path, set[str]] = {}
    for path in paths:
        starts.setdefault(path.parent, set()).add(_start(path))
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


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically. Raises OSError."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def parse_json(text: str | bytes) -> Any:
    """Parses a JSON text. Raises ValueError, also where it is nested too deeply to be parsed."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('nested too deeply') from None
