"""Atomic writes of files and folders; reading JSON that others wrote."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A context that yields a temporary path; the file or folder written there replaces `path` if nothing raises.

    Until then whatever exists at `path` stays. The temporary path has the same name, in a new folder beside `path`.
    """
    with tempfile.TemporaryDirectory(prefix=f'.{path.stem}.', dir=path.parent) as folder:
        yield (partial := Path(folder) / path.name)
        if path.is_dir():
            os.replace(path, Path(folder) / f'{path.name}.replaced')
        os.replace(partial, path)


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
