"""Local copies of remote files, for readers of local files: memory maps, PyAV, SentencePiece, Pillow."""

import pathlib

from fv_jax.core import cached_files, files
from fv_jax.core.paths import StoragePath


def local_copy(path: StoragePath) -> pathlib.Path:
    """Returns a local path with the content of a file or folder.

    A local path is returned as it is. A remote one is copied to the cache folder, once per host and version, and stays
    there as long as this process lives.

    Raises:
      OSError: it does not exist or cannot be read, or the cache folder is full.
    """
    if isinstance(path, pathlib.Path):
        return path
    found = files.list_files(path) or {'': files.info(path)}

    def fetch(folder: pathlib.Path) -> None:
        for name, info in found.items():
            target = folder / path.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.download(path / name, target, info)

    versions = ' '.join(f'{name}@{info.version}' for name, info in found.items())
    size = sum(info.size for info in found.values())
    return cached_files.open_entry('files', f'{path} {versions}', size, fetch).folder / path.name
