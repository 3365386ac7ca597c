"""The servers of these tests, and the proxy in front of them, as the libraries see them."""

import fsspec
import pytest
from etils import epath

from tests.storage.faults import Fault


def test_epath_and_the_server_see_the_same_objects(bucket):
    path = epath.Path(bucket.url) / 'a' / 'b c%+\u20ac#.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('text')
    assert bucket.sizes() == {'a/b c%+\u20ac#.txt': 4} and bucket.read('a/b c%+\u20ac#.txt') == b'text'
    bucket.write('a/d', b'other')
    fsspec.filesystem(bucket.url.partition(':')[0]).invalidate_cache()
    assert sorted(p.name for p in (epath.Path(bucket.url) / 'a').iterdir()) == ['b c%+\u20ac#.txt', 'd']
    assert (epath.Path(bucket.url) / 'a' / 'd').read_bytes() == b'other'


def test_403(bucket):
    bucket.write('a', b'other')
    with bucket.proxy.inject(Fault(status=403)), pytest.raises(OSError):
        (epath.Path(bucket.url) / 'a').read_bytes()
