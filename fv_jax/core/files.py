"""Writing files and folders whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
