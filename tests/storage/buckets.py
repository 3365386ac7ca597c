"""A bucket of a test: the environment to reach it through a proxy, and its objects as the server has them."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

import pytest

from tests.storage.proxy import Proxy


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket that is reached through `proxy`, by this process and by those with `environment`.

    Attributes:
        url: gs://NAME or s3://NAME.
    """

    url: str
    proxy: Proxy

    @property
    def name(self) -> str:
        return self.url.partition('://')[2]

    @property
    def environment(self) -> dict[str, str]:
        return self.proxy.environment()

    def sizes(self) -> dict[str, int]:
        """Returns the size of every object by name. Neither this nor the next two use the proxy."""
        return self.proxy.server.list_objects(self.name)

    def read(self, name: str) -> bytes:
        return self.proxy.server.download(self.name, name)

    def write(self, name: str, data: bytes) -> None:
        self.proxy.server.upload(self.name, name, data)


@contextlib.contextmanager
def make_bucket(proxy: Proxy, name: str) -> Iterator[Bucket]:
    """Makes an empty bucket, which this process reaches until the block ends; resets the proxy before and after."""
    import fsspec.config

    proxy.reset()
    bucket = Bucket(f'{proxy.server.protocol.scheme}://{name}', proxy)
    proxy.server.make_bucket(name)
    configuration = {protocol: dict(options) for protocol, options in fsspec.config.conf.items()}
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in bucket.environment.items():
            patch.setenv(variable, value)
        fsspec.config.set_conf_env(fsspec.config.conf)  # fsspec reads the environment once, when it is imported
        _drop_file_systems()
        yield bucket
    _drop_file_systems()
    fsspec.config.conf.clear()
    fsspec.config.conf.update(configuration)
    proxy.reset()


def _drop_file_systems() -> None:
    """Drops the file systems, one per process, with their addresses and listings."""
    classes = (
        ('gcsfs.core', 'GCSFileSystem'),
        ('s3fs.core', 'S3FileSystem'),
        ('fv_jax.core.storage.gcs', 'GcsFileSystem'),
        ('fv_jax.core.storage.s3', 'S3FileSystem'),
    )
    for module, name in classes:
        if module in sys.modules:
            getattr(sys.modules[module], name).clear_instance_cache()
    if 'etils.epath.backend' in sys.modules:
        sys.modules['etils.epath.backend'].fsspec_backend._get_filesystem.cache_clear()
