"""Local copies of remote files, for readers of local files: memory maps, PyAV, SentencePiece, Pillow."""

import contextlib
import pathlib
from collections.abc import Iterator

from fv_jax.core import cached_files, files
from fv_jax.core.cached_files import Entry
from fv_jax.core.paths import StoragePath
from fv_jax.core.storage.store import FileInfo


def local_copy(path: StoragePath) -> pathlib.Path:
    """Returns a local path with the content of a file or folder.

    A local path is returned as it is. A remote one is copied to the cache folder, once per host and version, and stays
    there as long as this process lives.

    Raises:
      OSError: it does not exist or cannot be read, or the cache folder is full.
    """
    return path if isinstance(path, pathlib.Path) else _open_entry(path).folder / path.name


@contextlib.contextmanager
def open_copy(path: StoragePath) -> Iterator[pathlib.Path]:
    """A context that yields what `local_copy` returns; afterwards the copy may be removed from the cache folder.

    What is open or mapped then stays readable.
    """
    if isinstance(path, pathlib.Path):
        yield path
        return
    with _open_entry(path) as folder:
        yield folder / path.name


def _open_entry(path: StoragePath) -> Entry:
    found = _find_files(path)

    def fetch(folder: pathlib.Path) -> None:
        for name, info in found.items():
            target = folder / path.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.download(path / name, target, info)

    versions = ' '.join(f'{name}@{info.version}' for name, info in found.items())
    size = sum(info.size for info in found.values())
    return cached_files.open_entry('files', f'{path} {versions}', size, fetch)


def _find_files(path: StoragePath) -> dict[str, FileInfo]:
    """Returns the files of a folder, or the file itself under the name ''."""
    try:
        return {'': files.info(path)}
    except IsADirectoryError:
        return files.list_files(path)
