"""Copies in the cache folder: atomic, fetched once per host, within the limit, never removed while they are used."""

import contextlib
import itertools
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from fv_jax.core import cache_folder
from fv_jax.core.cache_folder import CacheFullError, Limit, list_items, trim
from fv_jax.core.cached_files import open_entry
from fv_jax.core.file_locks import exclusive_lock
from tests import runs

PROGRAM = """
import sys, time
from fv_jax.core.cached_files import open_entry
def fetch(folder):
    (folder / 'part').write_bytes(b'x' * 500)
    print('fetching', flush=True)
    time.sleep(float(sys.argv[1]))
    (folder / 'rest').write_bytes(b'y' * 500)
with open_entry('files', 'gs://bucket/key', 1000, fetch) as folder:
    print(sorted(path.name for path in folder.iterdir()), flush=True)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder with a limit of 1000 bytes, in which each use is a second after the one before."""
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path / 'cache'))
    monkeypatch.setenv(cache_folder.LIMIT_VARIABLE, '1e-6')
    seconds, utime = itertools.count(1), os.utime
    monkeypatch.setattr(os, 'utime', lambda path: utime(path, (second := next(seconds), second)))
    return tmp_path / 'cache'


def write(size, fetched=None):
    def fetch(folder):
        (folder / 'file').write_bytes(bytes(size))
        if fetched is not None:
            fetched.append(size)

    return fetch


@contextlib.contextmanager
def start(seconds, program=PROGRAM):
    """A process that fetches for some seconds; it is killed at the end of the context."""
    command = [sys.executable, '-c', program, str(seconds)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, cwd=runs.ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def names(folder):
    return [item.name for item in list_items(folder)]


def test_entry_is_fetched_once_and_described(folder):
    key, fetched = 'gs://bucket/a b/ü*?' + 'x' * 500, []
    for _ in range(2):
        with open_entry('files', key, 400, write(400, fetched)) as found:
            assert (found / 'file').stat().st_size == 400
    (item,) = list_items(folder)
    assert fetched == [400] and (item.name, item.kind, item.size, item.is_partial) == (key, 'files', 400, False)
    with open_entry('shards', key, 300, write(300)), open_entry('files', f'{key}#2', 200, write(200)):
        assert len(list_items(folder)) == 3


def test_fetch_that_fails_leaves_nothing(folder):
    def fetch(folder):
        (folder / 'part').write_bytes(b'part')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_entry('files', 'key', 4, fetch)
    assert not [*(folder / 'files').iterdir()] and not list_items(folder)


def test_fetch_that_is_killed_leaves_no_entry_and_its_files_are_removed(folder):
    with start(600) as process:
        assert process.stdout.readline() == 'fetching\n'
        assert trim(0)[0] == [] and names(folder) == ['gs://bucket/key']  # in use
    assert [*folder.rglob('part')] and list_items(folder)[0].is_partial
    assert trim(1e9) == ([], []) and not [*(folder / 'files').iterdir()]


def test_killed_fetch_is_fetched_again(folder):
    with start(600) as process:
        process.stdout.readline()
    with open_entry('files', 'gs://bucket/key', 1000, write(1000)) as found:
        assert [path.name for path in found.iterdir()] == ['file']
    assert len(list_items(folder)) == 1


def test_killed_removal_is_completed(folder):
    open_entry('files', 'key', 400, write(400)).close()
    (path,) = (folder / 'files').glob('*[0-9a-f]')
    path.rename(path.with_suffix('.removed'))
    for _ in range(2):
        open_entry('files', 'key', 400, write(400)).close()
        (path / 'files' / 'file').unlink()  # and again, while the folder has a damaged copy
        path.with_suffix('.removed').mkdir()
        (path.with_suffix('.removed') / 'file').write_bytes(b'')
    open_entry('files', 'key', 400, write(400)).close()
    assert sorted(path.suffix for path in (folder / 'files').iterdir()) == ['', '.lock']


def test_processes_and_threads_fetch_once(folder):
    with start(0.5) as first, start(0.5) as second:
        outputs = [process.communicate()[0].splitlines() for process in (first, second)]
    assert [*map(len, outputs)] in ([1, 2], [2, 1])  # one of them reports that it fetches
    assert outputs[0][-1] == outputs[1][-1] == "['part', 'rest']"
    fetched = []

    def fetch(folder):
        time.sleep(0.1)
        write(10, fetched)(folder)

    trim(0)
    threads = [threading.Thread(target=open_entry, args=('files', 'key', 10, fetch)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [10]


def test_entry_that_is_completed_while_entries_are_counted_is_counted_once(folder):
    fetching, counting = threading.Event(), threading.Event()

    def fetch(folder):
        fetching.set()
        counting.wait(10)
        write(10)(folder)

    thread = threading.Thread(target=open_entry, args=('files', 'key', 10, fetch))
    thread.start()
    fetching.wait(10)
    with exclusive_lock(folder / 'lock'):
        counting.set()
        thread.join(0.2)
        assert [item.is_partial for item in list_items(folder)] == [True]
    thread.join(10)
    assert [item.is_partial for item in list_items(folder)] == [False]


def test_least_recently_used_entries_are_removed_first(folder):
    for key in 'abc':
        open_entry('files', key, 300, write(300)).close()
    open_entry('files', 'a', 300, write(300)).close()
    open_entry('files', 'd', 500, write(500)).close()
    assert names(folder) == ['a', 'd']
    assert not [*folder.rglob('*.removed')] and len([*folder.rglob('*.lock')]) == 2


def test_kind_has_a_limit_of_its_own(folder):
    open_entry('files', 'weights', 600, write(600)).close()
    limit = Limit(200, 'raise data.cache_gb')
    for number in range(5):
        open_entry('shards', f'shard{number}', 100, write(100), limit=limit).close()
    assert names(folder) == ['weights', 'shard3', 'shard4']
    with pytest.raises(CacheFullError, match=r'shard: has 300 B, and the limit .* is 200 B; raise data.cache_gb'):
        open_entry('shards', 'shard', 300, write(300), limit=limit)


def test_entry_larger_than_the_limit_is_one_line_and_removes_nothing(folder):
    open_entry('files', 'small', 900, write(900)).close()
    with pytest.raises(CacheFullError) as error:
        open_entry('files', 'gs://bucket/large', 1001, write(1001))
    text = str(error.value)
    assert text.startswith('gs://bucket/large: has 1 kB') and f'cache {folder} is 1 kB' in text and '\n' not in text
    assert 'set FV_JAX_CACHE_GB to more' in text and names(folder) == ['small']


def test_open_entries_are_not_removed(folder):
    open_entry('files', 'held', 600, write(600)).close()
    held = open_entry('files', 'held', 600, write(600))
    assert list_items(folder)[0].used == 2  # also if it is never closed
    open_entry('files', 'free', 300, write(300)).close()
    with pytest.raises(CacheFullError, match=r'has 500 B, and 600 B of the 1 kB of the cache .* are in use'):
        open_entry('files', 'new', 500, write(500))
    assert trim(0)[1] == list_items(folder) and (held.folder / 'file').exists()
    held.close()
    held.close()
    open_entry('files', 'new', 500, write(500)).close()
    assert names(folder) == ['new']


def test_entry_that_is_not_closed_is_held_until_its_process_ends(folder):
    program = """
from fv_jax.core.cached_files import open_entry
folder = open_entry('files', 'key', 4, lambda folder: (folder / 'file').write_bytes(b'data')).folder
print(folder, flush=True)
input()
"""
    with start(0, program) as process:
        assert process.stdout.readline().startswith(str(folder / 'files'))
        assert not trim(0)[0] and names(folder) == ['key']
        process.communicate('\n')
    assert len(trim(0)[0]) == 1 and not list_items(folder)


def test_what_is_open_or_mapped_stays_readable_after_its_entry_was_removed(folder):
    def fetch(folder):
        (folder / 'file').write_bytes(b'data' * 100)

    with open_entry('files', 'key', 400, fetch) as found:
        file = open(found / 'file', 'rb')  # noqa: SIM115
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert len(trim(0)[0]) == 1 and not list_items(folder) and not found.exists()
    assert mapped[:] == file.read() == b'data' * 100


def test_damaged_entry_is_fetched_again_also_while_it_is_open(folder):
    held = open_entry('files', 'key', 400, write(400))
    for damage in (
        lambda: (held.folder / 'file').write_bytes(b''),
        lambda: (held.folder.parent / 'entry.json').write_text('{'),
        lambda: (held.folder.parent / 'entry.json').unlink(),
        lambda: shutil.rmtree(held.folder.parent),
        lambda: shutil.rmtree(folder),
    ):
        damage()
        with open_entry('files', 'key', 400, write(400)) as found:
            assert (found / 'file').stat().st_size == 400
    held.close()


def test_size_is_measured(folder):
    open_entry('files', 'unknown', 0, write(700)).close()
    assert list_items(folder)[0].size == 700
    open_entry('files', 'next', 400, write(400)).close()
    assert names(folder) == ['next']


def test_full_disk_is_one_line(folder):
    def fetch(_):
        with open('/dev/full', 'wb') as file:
            file.write(b'data')

    with pytest.raises(CacheFullError) as error:
        open_entry('files', 'gs://bucket/key', 10, fetch)
    text = str(error.value)
    assert (
        text.startswith(f'gs://bucket/key: does not fit on the disk of the cache {folder}, which has ')
        and '\n' not in text
    )
    assert 'set FV_JAX_CACHE to' in text and not list_items(folder)


def test_entries_are_removed_where_the_disk_is_fuller_than_the_limit(folder, monkeypatch):
    disk = 700

    def usage(path):
        used = sum(item.size for item in list_items(folder))
        return type(before)(disk, used, disk - used)

    before = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', usage)
    for key in 'abc':
        open_entry('files', key, 300, write(300)).close()
    assert names(folder) == ['b', 'c']
    with pytest.raises(CacheFullError, match='does not fit on the disk'):
        open_entry('files', 'd', 701, write(701))
    assert names(folder) == ['b', 'c']
    with open_entry('files', 'b', 300, write(300)), pytest.raises(CacheFullError, match='does not fit on the disk'):
        open_entry('files', 'd', 500, write(500))
    assert names(folder) == ['b']
