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
    """Gives the path to write to; what is written there, a file or a folder, becomes `path` if nothing raises.

    Until then whatever exists at `path` stays. The path that is given has the same name, in a new folder beside `path`.
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
    """What a JSON text says. Raises ValueError, also for one that is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('nested too deeply') from None
