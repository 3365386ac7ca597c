"""Writing files and folders whole or not at all; reading JSON that others wrote."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end if nothing goes wrong; what was there stays until then.

    A file or a folder: whatever is made at the path that this gives, which has the same name in a folder beside it.
    """
    with tempfile.TemporaryDirectory(prefix=f'.{path.stem}.', dir=path.parent) as folder:
        yield (partial := Path(folder) / path.name)
        if path.is_dir():
            os.replace(path, Path(folder) / f'{path.name}.replaced')
        os.replace(partial, path)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError, also for one that is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('nested too deeply') from None
