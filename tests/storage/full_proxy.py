"""The proxy in front of the servers: what it counts, and each fault, by requests without a library."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.storage.buckets import Bucket
from tests.storage.faults import Fault
from tests.storage.protocols import WRITES, Message

KIB = 1 << 10


class Client:
    """One connection to the proxy."""

    def __init__(self, bucket: Bucket):
        self.bucket, self.protocol = bucket, bucket.proxy.server.protocol
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(bucket.proxy.url).netloc, timeout=20)

    def send(self, message: Message) -> tuple[int, bytes]:
        try:
            self.connection.request(message.method, message.target, message.body, message.headers)
            response = self.connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()  # the next request opens it again
            raise

    def close(self) -> None:
        self.connection.close()

    def upload(self, name: str, data: bytes) -> int:
        return self.send(self.protocol.upload(self.bucket.name, name, data))[0]

    def read(self, name: str) -> tuple[int, bytes]:
        return self.send(self.protocol.download(self.bucket.name, name))

    def list(self) -> int:
        return self.send(self.protocol.list_objects(self.bucket.name))[0]


@pytest.fixture
def client(bucket) -> Iterator[Client]:
    with contextlib.closing(Client(bucket)) as client:
        yield client


@pytest.fixture
def gs_client(gs_bucket) -> Iterator[Client]:
    with contextlib.closing(Client(gs_bucket)) as client:
        yield client


def test_requests_and_bytes_are_counted(client, bucket):
    for name in 'ab':
        assert client.upload(name, b'x' * 1000) == 200
    for name in 'abb':
        assert client.read(name) == (200, b'x' * 1000)
    assert client.list() == 200 and client.read('none')[0] == 404
    totals = bucket.proxy.totals()
    (upload,) = (total for (_, kind), total in totals.items() if kind == 'upload')
    assert upload[:2] == (2, 2000) and totals['GET', 'read'][0] == 4 and totals['GET', 'list'][0] == 1
    assert 3000 < totals['GET', 'read'][2] < 4000  # with the body of the 404
    assert bucket.proxy.count() == 7 and bucket.proxy.count('read', 'list') == 5 and bucket.proxy.count('delete') == 0
    assert [r.status for r in bucket.proxy.requests] == [200] * 6 + [404]
    bucket.proxy.reset()
    assert bucket.proxy.count() == 0


@pytest.mark.parametrize('length', [0, 1, 200 * KIB, 5000 * KIB])
def test_bodies_are_forwarded_over_one_connection(client, bucket, length):
    data = os.urandom(length)
    for _ in range(2):
        assert client.upload('a', data) == 200 and bucket.read('a') == data and client.read('a') == (200, data)


def test_chunked_upload_and_expect_continue(gs_client, gs_bucket):
    """As curl sends them, which TensorStore uses."""
    path = f'/upload/storage/v1/b/{gs_bucket.name}/o?uploadType=media&name=a'
    data = os.urandom(300 * KIB)
    for _ in range(2):
        chunks = (data[start : start + 70 * KIB] for start in range(0, len(data), 70 * KIB))
        gs_client.connection.request(
            'POST', path, chunks, encode_chunked=True, headers={'Transfer-Encoding': 'chunked'}
        )
        assert gs_client.connection.getresponse().read().startswith(b'{"kind":"storage#object"')
        assert gs_bucket.read('a') == data
    head = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n'
    with contextlib.closing(socket.create_connection(gs_bucket.proxy.address, timeout=20)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100) == b'HTTP/1.1 100 Continue\r\n\r\n'
        connection.sendall(b'hello')
        assert connection.recv(100).startswith(b'HTTP/1.1 200 OK')
    assert gs_bucket.read('a') == b'hello'


def test_status_of_every_third_request(client, bucket):
    bucket.write('a', b'data')
    with bucket.proxy.inject(Fault(status=503, every=3, times=2)) as fault:
        statuses = [client.read('a')[0] for _ in range(10)]
    assert statuses == [200, 200, 503] * 2 + [200] * 4 and fault.num_applied == 2
    assert [r.status for r in bucket.proxy.requests] == statuses
    with bucket.proxy.inject(Fault(status=503)):
        assert client.upload('a', os.urandom(200 * KIB)) == 503  # and its body is not read as a request
    assert client.read('a') == (200, b'data')


def test_403_for_writes_and_for_paths(client, bucket):
    bucket.write('a/b', b'data')
    with bucket.proxy.inject(Fault(status=403, kinds=WRITES)):
        assert (client.upload('a/b', b'x'), client.read('a/b')[0], client.list()) == (403, 200, 200)
    with bucket.proxy.inject(Fault(status=403, pattern=f'^{bucket.name}/a/')):
        assert (client.upload('a/c', b'x'), client.read('a/b')[0]) == (403, 403)
        assert (client.upload('b', b''), client.list()) == (200, 200)
    with bucket.proxy.inject(Fault(status=403)):
        assert (client.upload('b', b'x'), client.read('a/b')[0], client.list()) == (403, 403, 403)
    assert bucket.sizes() == {'a/b': 4, 'b': 0}


def test_cut_of_a_download(client, bucket):
    data = os.urandom(500 * KIB)
    bucket.write('a', data)
    with bucket.proxy.inject(Fault(cut_after=100 * KIB, kinds=['read'], times=1)):
        with pytest.raises(http.client.IncompleteRead) as error:
            client.read('a')
        assert error.value.partial == data[: 100 * KIB]
        assert client.read('a') == (200, data)
    assert [r.down for r in bucket.proxy.requests] == [100 * KIB, 500 * KIB]


def test_cut_of_an_upload_keeps_the_old_object(client, bucket):
    bucket.write('a', b'old')
    with bucket.proxy.inject(Fault(cut_after=100 * KIB, kinds=['upload'])), pytest.raises(OSError):
        client.upload('a', os.urandom(500 * KIB))
    time.sleep(0.1)
    assert bucket.read('a') == b'old'
    assert [(r.status, r.up) for r in bucket.proxy.requests] == [(0, 100 * KIB)]


def test_dropped_response(client, bucket):
    with bucket.proxy.inject(Fault(drop_response=True, kinds=['upload'])), pytest.raises(OSError):
        client.upload('a', b'data')
    assert bucket.read('a') == b'data'


def test_replacement_between_two_reads(client, bucket):
    bucket.write('a', b'old')
    with bucket.proxy.inject(Fault(replacement=b'new', kinds=['read'], pattern='/a$', skip=1, times=1)):
        assert [client.read('a')[1] for _ in range(3)] == [b'old', b'new', b'new']


def test_delay_and_rate(client, bucket):
    bucket.write('a', b'x' * 100 * KIB)
    for fault in (Fault(delay=0.3), Fault(rate=300 * KIB)):
        began = time.monotonic()
        with bucket.proxy.inject(fault):
            assert client.read('a')[0] == 200
        assert 0.3 <= time.monotonic() - began < 5


def test_outage_refuses_connections_and_closes_open_ones(client, bucket):
    bucket.write('a', b'data')
    assert client.read('a') == (200, b'data')
    with bucket.proxy.outage(), pytest.raises(ConnectionRefusedError):
        socket.create_connection(bucket.proxy.address)
    client.connection.close()
    assert client.read('a') == (200, b'data')


def test_outage_within_a_download(client, bucket):
    bucket.write('a', b'x' * 500 * KIB)
    bucket.proxy.add_fault(Fault(rate=100 * KIB, times=1))
    threading.Timer(0.3, bucket.proxy.start_outage, [0.5]).start()
    began = time.monotonic()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        client.read('a')
    status = None
    while status is None and time.monotonic() - began < 10:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, data = client.read('a')
        time.sleep(0.01)
    assert (status, len(data)) == (200, 500 * KIB)
    assert 0.7 < time.monotonic() - began < 5


def test_other_processes_control_the_proxy(client, bucket):
    bucket.write('a', b'old')

    def control(method: str, action: str, fields: dict | None = None) -> bytes:
        return client.send(Message(method, f'/_proxy/{action}', json.dumps(fields or {}).encode()))[1]

    control('POST', 'faults', {'replacement': 'new', 'kinds': ['read'], 'skip': 1})
    assert [client.read('a')[1] for _ in range(2)] == [b'old', b'new']
    (first, _) = json.loads(control('GET', 'requests'))
    assert first['method'] == 'GET' and first['call'] == ['read', bucket.name, 'a'] and first['down'] == 3
    control('POST', 'reset')
    bucket.write('a', b'old')
    assert [client.read('a')[1] for _ in range(2)] == [b'old', b'old'] and bucket.proxy.count() == 2
    control('POST', 'outage', {'seconds': 0.5})
    with pytest.raises(OSError):
        while True:
            socket.create_connection(bucket.proxy.address).close()
            time.sleep(0.01)
    time.sleep(0.6)
    socket.create_connection(bucket.proxy.address).close()


def test_requests_take_little_longer_than_without_the_proxy(gs_client):
    """Generously: 0.3 ms instead of 0.2 ms on an idle machine."""
    began = time.monotonic()
    for _ in range(300):
        assert gs_client.upload('a', b'x' * 1000) == 200
    assert time.monotonic() - began < 3
