"""The file systems of object stores: those of gcsfs and s3fs, whose requests are repeated by `retries`.

They take the place of the original ones in fsspec's registry, so that `epath`, and Orbax through it, use them too. Two
more differences: no listing is cached, because other processes write to the same folders; and only a missing object
makes `isdir` and `isfile` false, not a refused request.
"""

import importlib
import importlib.util
import os
from typing import Any

import fsspec

from fv_jax.core.storage.retries import PATIENCE_S, Retries

_HERE = __name__.rpartition('.')[0]
# scheme -> package, extra, class
SCHEMES = {
    'gs': ('gcsfs', 'gcs', f'{_HERE}.gcs.GcsFileSystem'),
    's3': ('s3fs', 's3', f'{_HERE}.s3.S3FileSystem'),
}
_ALIASES = {'gs': ('gs', 'gcs'), 's3': ('s3', 's3a')}

# With TensorFlow installed `epath` would use its file systems instead; gcsfs would ask each bucket for features of
# hierarchical namespaces, with a warning for each call without credentials. Both are read when a library is imported.
os.environ.setdefault('EPATH_USE_TF', 'false')
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')


class StoreFileSystem:
    """What the two file systems have in common; comes before gcsfs's or s3fs's class among the bases.

    Attributes:
      retries_of_requests: repeats the requests of this file system.
    """

    def __init__(self, *args: Any, patience_s: float = PATIENCE_S, **options: Any):
        super().__init__(*args, **{'use_listings_cache': False, **options})
        self.retries_of_requests = Retries(f'{self.protocol[0]}://', patience_s)

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == 'directory'

    async def _isfile(self, path: str) -> bool:
        return await self._type(path) == 'file'

    async def _type(self, path: str) -> str:
        try:
            return (await self._info(path))['type']
        except FileNotFoundError:
            return ''


def register(scheme: str, url: str) -> None:
    """Makes fsspec use the file system of this module for a scheme.

    Args:
      scheme: in front of ://.
      url: for messages.

    Raises:
      ValueError: an unknown scheme, or one whose package is not installed.
    """
    if scheme not in SCHEMES:
        known = ' and '.join(f'{name}://' for name in SCHEMES)
        raise ValueError(f'{url}: the scheme {scheme}:// is not supported; use a local path, or {known}')
    package, extra, path = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{url}: {scheme}:// needs {package}; install it: pip install 'fv_jax[{extra}]'")
    module, _, name = path.rpartition('.')
    # The class, not its path: fsspec prefers a class of its own that another library has asked for before.
    filesystem = getattr(importlib.import_module(module), name)
    for alias in _ALIASES[scheme]:
        fsspec.register_implementation(alias, filesystem, clobber=True)


def open_filesystem(scheme: str, **options: float) -> fsspec.AbstractFileSystem:
    """Opens the file system of a scheme that is registered; the same options give the same object."""
    return fsspec.filesystem(scheme, **options)
