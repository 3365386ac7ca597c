"""Servers of this process of pytest, each behind a proxy, and an empty bucket for each test."""

import itertools
import os
from collections.abc import Iterator

# Read when gcsfs is imported, which otherwise asks the server for the layout of a bucket, over gRPC, for minutes.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'

import pytest

from tests.storage import buckets, servers
from tests.storage.buckets import Bucket
from tests.storage.proxy import Proxy

_NUMBERS = itertools.count(1)


@pytest.fixture(scope='session')
def gs_proxy() -> Iterator[Proxy]:
    with servers.gcs_server() as server, Proxy(server) as proxy:
        yield proxy


@pytest.fixture(scope='session')
def s3_proxy() -> Iterator[Proxy]:
    with servers.s3_server() as server, Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def gs_bucket(gs_proxy: Proxy) -> Iterator[Bucket]:
    with buckets.make_bucket(gs_proxy, f'bucket-{next(_NUMBERS)}') as bucket:
        yield bucket


@pytest.fixture
def s3_bucket(s3_proxy: Proxy) -> Iterator[Bucket]:
    with buckets.make_bucket(s3_proxy, f'bucket-{next(_NUMBERS)}') as bucket:
        yield bucket


@pytest.fixture(params=['gs', 's3'])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """Runs a test with gs:// and with s3://."""
    return request.getfixturevalue(f'{request.param}_bucket')
