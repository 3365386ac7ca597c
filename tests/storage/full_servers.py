"""The servers of these tests as libraries see them, and what the proxy adds to their semantics."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import fsspec
import pytest
import tensorstore
from etils import epath

from tests import runs
from tests.storage import buckets, servers
from tests.storage.faults import Fault
from tests.storage.protocols import S3
from tests.storage.proxy import Proxy

NAME = 'a/b c%+\u20ac#.txt'
MIB = 1 << 20
START = """
import sys, time
from tests.storage import servers
with servers.{}_server() as server:
    print(server.url, flush=True)
    time.sleep(60)
"""


def send(bucket, method, target, body=b'', **headers) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Sends a request through the proxy, without a library."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(bucket.proxy.url).netloc, timeout=20)
    signed = S3.SIGNED if bucket.url.startswith('s3') else {}
    with contextlib.closing(connection):
        connection.request(method, target, body, {**signed, **{k.replace('_', '-'): v for k, v in headers.items()}})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def file_system(bucket) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem(bucket.url.partition(':')[0])


def upload_path(bucket, name, kind='media', **query) -> str:
    query = {'uploadType': kind, 'name': name, **query}
    return f'/upload/storage/v1/b/{bucket.name}/o?{urllib.parse.urlencode(query)}'


def object_path(bucket, name, **query) -> str:
    return f'/storage/v1/b/{bucket.name}/o/{urllib.parse.quote(name, safe="")}?{urllib.parse.urlencode(query)}'


def generation(bucket, name) -> str:
    return json.loads(send(bucket, 'GET', object_path(bucket, name))[2])['generation']


def test_epath_and_the_server_see_the_same_objects(bucket):
    path = epath.Path(bucket.url) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('text')
    assert bucket.sizes() == {NAME: 4} and bucket.read(NAME) == b'text'
    bucket.write('a/d', b'other')
    file_system(bucket).invalidate_cache()
    assert sorted(p.name for p in (epath.Path(bucket.url) / 'a').iterdir()) == [NAME[2:], 'd']
    assert (epath.Path(bucket.url) / 'a' / 'd').read_bytes() == b'other'
    assert {request.call.kind for request in bucket.proxy.requests} >= {'upload', 'list', 'read'}
    assert {request.call.name for request in bucket.proxy.requests if request.call.kind == 'upload'} == {NAME}


@pytest.mark.parametrize('name', ['a', 'a/b'])
def test_name_may_be_a_folder_of_other_objects(bucket, name):
    for each in ('a', 'a/b'):
        bucket.write(each, each.encode())
    assert file_system(bucket).cat_file(f'{bucket.name}/{name}') == name.encode()


def test_listing_has_checksums(gs_bucket, s3_bucket):
    for bucket in (gs_bucket, s3_bucket):
        bucket.write('a', b'123456789')
    (item,) = json.loads(send(gs_bucket, 'GET', f'/storage/v1/b/{gs_bucket.name}/o')[2])['items']
    assert item['size'] == '9' and int(item['generation']) > 0
    assert item['crc32c'] == '4waSgw==' and item['md5Hash'] == 'JfnnlDI7RTiF9RgfG2JNCw=='
    status, _, body = send(s3_bucket, 'GET', f'/{s3_bucket.name}?list-type=2')
    assert status == 200 and b'<ETag>"25f9e794323b453885f5181f1b624d0b"</ETag>' in body


def test_urls_in_responses_are_those_of_the_proxy(gs_bucket):
    gs_bucket.write('a', b'')
    item = json.loads(send(gs_bucket, 'GET', object_path(gs_bucket, 'a'))[2])
    assert item['mediaLink'].startswith(gs_bucket.proxy.url) and item['selfLink'].startswith(gs_bucket.proxy.url)


def test_tensorstore_uses_the_proxy_and_its_preconditions(gs_bucket):
    store = tensorstore.KvStore.open(f'{gs_bucket.url}/run/').result()
    store['a'] = b'first'
    generation = store.read('a').result().stamp.generation
    written = [store.write('a', data, if_equal=generation).result().generation for data in (b'second', b'third')]
    assert written[0] != generation and len(written[0]) > 1 >= len(written[1])  # the last: no generation
    assert store['a'] == b'second' == gs_bucket.read('run/a') and store.list().result() == [b'a']
    kinds = [request.call.kind for request in gs_bucket.proxy.requests]
    assert kinds.count('upload') == 3 and kinds.count('read') >= 1 and kinds.count('list') == 1


def test_create_fails_where_the_object_exists(bucket):
    files = file_system(bucket)
    files.pipe_file(f'{bucket.name}/a', b'first', mode='create')
    with pytest.raises(FileExistsError):
        files.pipe_file(f'{bucket.name}/a', b'second', mode='create')
    assert bucket.read('a') == b'first'


def test_one_of_several_concurrent_creations_succeeds(bucket):
    def create(number: int) -> int:
        name, body = f'a{number // 8}', b'%d' % number
        if bucket.url.startswith('s3'):
            return send(bucket, 'PUT', f'/{bucket.name}/{name}', body, If_None_Match='*')[0]
        return send(bucket, 'POST', upload_path(bucket, name, ifGenerationMatch=0), body)[0]

    with concurrent.futures.ThreadPoolExecutor(16) as executor:
        statuses = list(executor.map(create, range(64)))
    assert sorted(statuses) == [200] * 8 + [412] * 56
    created = {f'a{number // 8}': b'%d' % number for number, status in enumerate(statuses) if status == 200}
    assert {name: bucket.read(name) for name in bucket.sizes()} == created


def test_preconditions_on_a_generation(gs_bucket):
    gs_bucket.write('a', b'old')
    old = generation(gs_bucket, 'a')
    gs_bucket.write('a', b'new')
    new = generation(gs_bucket, 'a')
    for method, media in (('GET', {'alt': 'media'}), ('GET', {}), ('DELETE', {})):
        assert send(gs_bucket, method, object_path(gs_bucket, 'a', ifGenerationMatch=old, **media))[0] == 412
    assert send(gs_bucket, 'GET', object_path(gs_bucket, 'a', alt='media', ifGenerationNotMatch=new))[0] == 304
    assert send(gs_bucket, 'GET', object_path(gs_bucket, 'a', alt='media', ifGenerationNotMatch=old))[2] == b'new'
    assert send(gs_bucket, 'GET', object_path(gs_bucket, 'a', alt='media', generation=old))[0] == 404
    assert send(gs_bucket, 'POST', upload_path(gs_bucket, 'a', ifGenerationMatch=new), b'newer')[0] == 200
    assert send(gs_bucket, 'POST', upload_path(gs_bucket, 'a', ifGenerationMatch=new), b'newest')[0] == 412
    assert gs_bucket.read('a') == b'newer'


def test_resumable_upload_repeats_chunks_and_reports_its_state(gs_bucket):
    target = upload_path(gs_bucket, 'a', 'resumable', ifGenerationMatch=0)
    locations = [send(gs_bucket, 'POST', target, b'{}')[1]['Location'] for _ in range(2)]
    assert all(location.startswith(gs_bucket.proxy.url) for location in locations)
    first, second = (location.removeprefix(gs_bucket.proxy.url) for location in locations)
    for _ in range(2):
        status, headers, _ = send(gs_bucket, 'PUT', first, b'0123', Content_Range='bytes 0-3/*')
        assert (status, headers['Range']) == (308, 'bytes=0-3')
    status, headers, _ = send(gs_bucket, 'PUT', first, Content_Range='bytes */*')
    assert (status, headers['Range']) == (308, 'bytes=0-3') and gs_bucket.sizes() == {}
    for _ in range(2):
        status, _, body = send(gs_bucket, 'PUT', first, b'45', Content_Range='bytes 4-5/6')
        assert (status, json.loads(body)['size']) == (200, '6')
    assert send(gs_bucket, 'PUT', second, b'other', Content_Range='bytes 0-4/5')[0] == 412
    assert gs_bucket.read('a') == b'012345'


@pytest.mark.parametrize(
    'fault', [Fault(status=503, skip=2, times=1), Fault(drop_response=True, skip=2, times=1)], ids=['503', 'drop']
)
def test_large_file_in_chunks_is_intact_in_spite_of_faults(gs_bucket, fault):
    data = os.urandom(5 * MIB // 2)
    fault.kinds = ('upload',)
    path = f'{gs_bucket.name}/a'
    with gs_bucket.proxy.inject(fault), file_system(gs_bucket).open(path, 'wb', block_size=MIB // 4) as file:
        for start in range(0, len(data), MIB // 4):
            file.write(data[start : start + MIB // 4])
    assert gs_bucket.read('a') == data and fault.num_applied == 1 and gs_bucket.proxy.count('upload') > 5


def test_large_file_in_parts_is_intact(s3_bucket):
    data = os.urandom(11 * MIB)
    with file_system(s3_bucket).open(f'{s3_bucket.name}/a', 'wb', block_size=5 * MIB) as file:
        file.write(data[: 6 * MIB])
        file.write(data[6 * MIB :])
    assert s3_bucket.read('a') == data and s3_bucket.proxy.count('upload') >= 4


def test_ranges(bucket):
    data = os.urandom(MIB)
    bucket.write('a', data)
    assert file_system(bucket).cat_file(f'{bucket.name}/a', start=1000, end=1100) == data[1000:1100]
    (read,) = (request for request in bucket.proxy.requests if request.call.kind == 'read')
    assert (read.status, read.down) == (206, 100)


def test_batch_deletes(gs_bucket, s3_bucket):
    for bucket in (gs_bucket, s3_bucket):
        for name in 'abc':
            bucket.write(name, b'')
    part = '--x\r\nContent-Type: application/http\r\nContent-ID: <{}>\r\n\r\nDELETE {} HTTP/1.1\r\n\r\n\r\n'
    body = ''.join(part.format(name, object_path(gs_bucket, name)) for name in 'ab') + '--x--'
    content_type = 'multipart/mixed; boundary=x'
    assert send(gs_bucket, 'POST', '/batch/storage/v1', body.encode(), Content_Type=content_type)[0] == 200
    keys = ''.join(f'<Object><Key>{name}</Key></Object>' for name in 'ab')
    send(s3_bucket, 'POST', f'/{s3_bucket.name}?delete', f'<Delete>{keys}</Delete>'.encode())
    for bucket in (gs_bucket, s3_bucket):
        assert list(bucket.sizes()) == ['c'] and bucket.proxy.count('batch') == 1


@pytest.mark.parametrize('kind', ['gcs', 's3'])
def test_server_ends_with_the_process_that_started_it(kind):
    command = [sys.executable, '-c', START.format(kind)]
    process = subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, text=True)
    address = urllib.parse.urlsplit(process.stdout.readline().strip())
    socket.create_connection((address.hostname, address.port)).close()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            socket.create_connection((address.hostname, address.port)).close()
            time.sleep(0.02)


@pytest.mark.parametrize('start', [servers.gcs_server, servers.s3_server])
def test_file_systems_do_not_outlive_their_bucket(start):
    with start() as server, Proxy(server) as first, Proxy(server) as second:
        for proxy, other in ((first, second), (second, first)):
            with buckets.make_bucket(proxy, f'bucket-{proxy.url[-5:]}') as bucket:
                bucket.write('a', b'')
                assert [path.name for path in epath.Path(bucket.url).iterdir()] == ['a']
                assert proxy.count('list') and not other.count()
        assert 'AWS_ENDPOINT_URL' not in os.environ and 'STORAGE_EMULATOR_HOST' not in os.environ
        assert 'token' not in fsspec.config.conf.get('gcs', {})
