"""The operations of `core/files` on objects of real servers, and what they do while a server fails."""

import os
import pathlib
import threading
import time

import pytest

from fv_jax.core import files, local_copies
from fv_jax.core.paths import as_path
from fv_jax.core.storage import append, objects, retries
from tests.storage.faults import Fault


@pytest.fixture
def folder(bucket):
    return as_path(f'{bucket.url}/runs/a')


def test_paths_of_objects_have_the_methods_of_local_ones(folder):
    files.write_text(folder / 'x' / 'ä b.txt', 'hello')
    assert (folder / 'x' / 'ä b.txt').read_text() == 'hello'
    assert [(folder / name).is_dir() for name in ('', 'x', 'x/ä b.txt', 'y')] == [True, True, False, False]
    assert [(folder / name).is_file() for name in ('', 'x', 'x/ä b.txt', 'y')] == [False, False, True, False]
    assert [(folder / name).exists() for name in ('', 'x', 'x/ä b.txt', 'y')] == [True, True, True, False]
    assert [path.name for path in (folder / 'x').iterdir()] == ['ä b.txt']
    assert [path.name for path in folder.glob('*')] == ['x'] and list((folder / 'y').glob('*')) == []
    (folder / 'x' / 'ä b.txt').unlink()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match=f'{folder}/y'):
        files.info(folder / 'y')


def test_listing_states_sizes_versions_and_checksums_without_reading(folder, bucket):
    files.write_bytes(folder / 'a', b'123')
    files.write_bytes(folder / 'b' / 'c', b'')
    before = files.list_files(folder)
    assert {name: info.size for name, info in before.items()} == {'a': 3, 'b/c': 0}
    assert files.checksums(folder)['a'] == (3, before['a'].checksum)
    files.write_bytes(folder / 'a', b'124')
    after = files.list_files(folder)
    assert after['a'].version != before['a'].version and after['a'].checksum != before['a'].checksum
    assert after['b/c'] == before['b/c'] and files.info(folder / 'a') == after['a']
    assert files.list_files(folder / 'none') == {}
    assert bucket.proxy.count('read') == 0


def test_exclusive_creation_succeeds_once(folder):
    assert files.create_exclusive(folder / 'lock', b'me') and not files.create_exclusive(folder / 'lock', b'other')
    assert (folder / 'lock').read_bytes() == b'me'
    assert files.create_exclusive(folder / 'lock', b'me')  # as if the answer to the first request had been lost


def run_in_threads(function):
    """Calls function(b'0'), ... function(b'7') in a thread each."""
    threads = [threading.Thread(target=function, args=(b'%d' % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_exclusive_creation_of_many_threads_succeeds_once(folder):
    created = []

    def create(name):
        if files.create_exclusive(folder / 'lock', name):
            created.append(name)

    run_in_threads(create)
    assert created == [(folder / 'lock').read_bytes()]


def test_update_writes_only_what_nobody_has_written_meanwhile(folder, bucket):
    files.write_bytes(folder / 'lock', b'me')
    assert files.update(folder / 'lock', lambda content: content + b'1') and not files.update(
        folder / 'lock', lambda content: None
    )
    assert (folder / 'lock').read_bytes() == b'me1'

    def lose(content):
        files.write_bytes(folder / 'lock', b'other')
        return b'me2'

    assert not files.update(folder / 'lock', lose) and (folder / 'lock').read_bytes() == b'other'
    with bucket.proxy.inject(Fault(drop_response=True, kinds=('upload',), times=1)) as fault:
        assert files.update(folder / 'lock', lambda content: b'me3')  # the repeated request finds it written
    assert fault.num_applied == 1 and (folder / 'lock').read_bytes() == b'me3'
    with pytest.raises(FileNotFoundError):
        files.update(folder / 'none', lambda content: b'')
    assert not (folder / 'none').exists()


def test_update_of_many_threads_succeeds_once(folder):
    files.write_bytes(folder / 'lock', b'stale')
    barrier, taken = threading.Barrier(8), []

    def take(name):
        def change(content):
            barrier.wait()
            return name

        if files.update(folder / 'lock', change):
            taken.append(name)

    run_in_threads(take)
    assert taken == [(folder / 'lock').read_bytes()]


def test_atomic_write_of_a_folder_uploads_its_marker_last(folder, bucket):
    def write(*names):
        with files.atomic_write(folder / 'out', marker='index') as partial:
            partial.mkdir()
            for name in names:
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_text(name)

    write('a', 'index', 'sub/z')
    assert sorted(files.list_files(folder / 'out')) == ['a', 'index', 'sub/z']
    uploads = [request.call.name for request in bucket.proxy.requests if request.call.kind == 'upload']
    assert uploads[-1].endswith('out/index') and len(uploads) == 3
    with bucket.proxy.inject(Fault(status=403, kinds=('upload',), pattern='sub/')), pytest.raises(PermissionError):
        write('b', 'index', 'sub/y')
    assert 'index' not in files.list_files(folder / 'out')  # no reader takes the mixture for a folder
    write('c', 'index')
    assert sorted(files.list_files(folder / 'out')) == ['c', 'index']


def test_write_folder_removes_the_old_files_and_those_of_a_failure(folder, bucket):
    def write(name):
        with files.write_folder(folder / 'out', marker='index') as target:
            assert target == folder / 'out' and not target.exists()
            files.write_text(target / name, name)
            files.write_text(target / 'index', name)

    for name in ('a', 'b'):
        write(name)
        assert sorted(files.list_files(folder / 'out')) == [name, 'index']
    with bucket.proxy.inject(Fault(status=403, kinds=('upload',), pattern='index')), pytest.raises(PermissionError):
        write('c')
    assert not (folder / 'out').exists()


def test_a_folder_in_a_bucket_need_not_be_made(folder, bucket):
    assert files.folder_exists(folder / 'none') and files.folder_exists(as_path(bucket.url))
    assert not files.folder_exists(as_path(bucket.url).parent)


def test_atomic_write_that_fails_leaves_what_existed(folder):
    files.write_text(folder / 'x', 'before')
    with pytest.raises(RuntimeError), files.atomic_write(folder / 'x') as partial:
        partial.write_text('half')
        raise RuntimeError
    assert (folder / 'x').read_text() == 'before' and not partial.exists()


def test_remove_folder_removes_the_marker_first(folder, bucket):
    for name in ('a', 'done', 'sub/z'):
        files.write_text(folder / 'out' / name, name)
    with bucket.proxy.inject(Fault(status=403, kinds=('delete', 'batch'), skip=1)), pytest.raises(OSError):
        files.remove_folder(folder / 'out', marker='done')
    assert sorted(files.list_files(folder / 'out')) == ['a', 'sub/z']
    files.remove_folder(folder / 'out', marker='done')
    assert not (folder / 'out').exists()
    files.remove_folder(folder / 'none')


def test_append_uploads_at_most_every_interval_and_the_rest_at_the_end(folder, bucket, monkeypatch):
    monkeypatch.setattr(append, 'INTERVAL_S', 0.2)
    files.write_text(folder / 'log', 'a\n')
    bucket.proxy.reset()
    started, file = time.monotonic(), files.append_to(folder / 'log')
    for i in range(50):
        file.add(b'%d\n' % i)
    expected = 'a\n' + ''.join(f'{i}\n' for i in range(50))
    while bucket.read('runs/a/log').decode() != expected and time.monotonic() < started + 60:
        time.sleep(0.02)
    assert (folder / 'log').read_text() == expected
    file.add(b'last\n')
    file.close()
    assert (folder / 'log').read_text() == f'{expected}last\n'
    assert bucket.proxy.count('upload') <= (time.monotonic() - started) / append.INTERVAL_S + 1


def test_append_keeps_what_cannot_be_written_and_says_so_at_the_end(folder, bucket, monkeypatch, caplog):
    monkeypatch.setattr(append, 'INTERVAL_S', 0.05)
    file = files.append_to(folder / 'log')
    with bucket.proxy.inject(Fault(status=403, kinds=('upload',))):
        file.add(b'1\n')
        deadline = time.monotonic() + 10
        while 'kept in memory' not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(PermissionError, match='permission denied'):
            file.close()
    file = files.append_to(folder / 'log')
    file.add(b'1\n')
    file.close()
    assert (folder / 'log').read_text() == '1\n' and 'kept in memory' in caplog.text


def test_append_flushes_and_leaves_alone_what_another_process_has_written(folder, bucket):
    file = files.append_to(folder / 'log')
    file.add(b'1\n')
    file.flush()
    assert (folder / 'log').read_text() == '1\n'
    files.write_text(folder / 'log', 'other\n')
    file.add(b'2\n')
    with pytest.raises(OSError, match='log: another process has written it'):
        file.close()
    assert (folder / 'log').read_text() == 'other\n'


def test_local_copy_is_fetched_once_and_again_when_it_was_replaced(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path))
    data = os.urandom(100_000)
    files.write_bytes(folder / 'w' / 'a.bin', data)
    files.write_bytes(folder / 'w' / 'sub' / 'b.bin', b'b')
    copy = local_copies.local_copy(folder / 'w')
    assert isinstance(copy, pathlib.Path) and (copy / 'a.bin').read_bytes() == data
    assert (copy / 'sub' / 'b.bin').read_bytes() == b'b'
    reads = bucket.proxy.count('read')
    assert local_copies.local_copy(folder / 'w') == copy and bucket.proxy.count('read') == reads
    files.write_bytes(folder / 'w' / 'a.bin', b'new')
    assert (local_copies.local_copy(folder / 'w') / 'a.bin').read_bytes() == b'new'
    assert local_copies.local_copy(folder / 'w' / 'a.bin').read_bytes() == b'new'
    with pytest.raises(FileNotFoundError, match='none'):
        local_copies.local_copy(folder / 'none')


def test_open_copy_is_removed_when_it_is_closed_and_room_is_needed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path))
    monkeypatch.setenv('FV_JAX_CACHE_GB', '150e-6')
    for name in 'abc':
        files.write_bytes(folder / name, os.urandom(60_000))
    with local_copies.open_copy(folder / 'a') as first, local_copies.open_copy(folder / 'b') as second:
        assert first.read_bytes() == (folder / 'a').read_bytes()
        with pytest.raises(OSError), local_copies.open_copy(folder / 'c'):
            pass
    with local_copies.open_copy(folder / 'c') as third:
        assert third.exists() and [first.exists(), second.exists()].count(True) == 1


# Servers that fail.


def test_download_in_blocks_survives_503_and_cut_connections(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, 'BLOCK_BYTES', 2**18)
    data = os.urandom(2**21 + 17)
    files.write_bytes(folder / 'shard', data)
    with bucket.proxy.inject(Fault(status=503, every=3)):
        files.download(folder / 'shard', tmp_path / 'a')
    with bucket.proxy.inject(Fault(cut_after=100_000, every=4, kinds=('read',))):
        files.download(folder / 'shard', tmp_path / 'b')
    assert (tmp_path / 'a').read_bytes() == data == (tmp_path / 'b').read_bytes()


def test_download_of_an_object_that_is_replaced_meanwhile_is_refused(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, 'BLOCK_BYTES', 2**18)
    files.write_bytes(folder / 'shard', os.urandom(2**20))
    with (
        bucket.proxy.inject(Fault(replacement=os.urandom(2**20), skip=1, times=1, kinds=('read',))),
        pytest.raises(OSError, match=f'{folder}/shard: .*replaced'),
    ):
        files.download(folder / 'shard', tmp_path / 'a')


def test_outage_is_waited_for(folder, bucket, caplog, monkeypatch):
    monkeypatch.setattr(retries, 'FIRST_WAIT_S', 0.02)
    files.write_text(folder / 'x', 'hello')
    bucket.proxy.start_outage(0.5)
    assert (folder / 'x').read_text() == 'hello' and (folder / 'x').exists()
    with bucket.proxy.inject(Fault(status=503, every=2)):
        for i in range(6):
            files.write_text(folder / f'{i}', str(i))
            assert (folder / f'{i}').is_file() and (folder / f'{i}').read_text() == str(i)
    assert 'a request failed' in caplog.text


def test_permission_denied_is_raised_at_once(folder, bucket):
    files.write_text(folder / 'x', 'hello')
    with bucket.proxy.inject(Fault(status=403)):
        for call in (
            lambda: files.check_reachable(folder),
            lambda: files.check_writable(folder),
            lambda: files.write_text(folder / 'y', ''),
            lambda: (folder / 'x').read_text(),
            lambda: (folder / 'x').exists(),
            lambda: (folder / 'x').is_dir(),
            lambda: files.list_files(folder),
        ):
            with pytest.raises(PermissionError, match=f'{bucket.url}.*permission denied'):
                call()


def test_check_reachable_names_a_bucket_that_does_not_exist(folder, bucket, monkeypatch):
    files.check_reachable(folder)
    files.check_writable(folder)
    assert bucket.sizes() == {}
    with pytest.raises(FileNotFoundError, match='bucket none-of-this-name does not exist'):
        files.check_reachable(as_path(f'{bucket.url.split("://")[0]}://none-of-this-name/x'))
    monkeypatch.setattr(objects, 'REACH_S', 0.0)
    with bucket.proxy.outage(), pytest.raises(OSError, match=bucket.url):
        files.check_reachable(folder)
