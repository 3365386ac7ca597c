"""The lock of a work directory: one run at a time, and what a killed one left is no obstacle."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core.command_line import UsageError
from fv_jax.training.run import run_lock
from fv_jax.training.run.run_lock import LOCK, lock_run


def holder(folder):
    return json.loads((folder / LOCK).read_text())


def rewrite(folder, **fields):
    (folder / LOCK).write_text(json.dumps(holder(folder) | fields))


@pytest.fixture
def stale(tmp_path):
    """A folder with the lock of a process that was killed."""
    code = 'import os, sys; from pathlib import Path; from fv_jax.training.run.run_lock import RunLock;'
    code += 'RunLock(Path(sys.argv[1])); os._exit(9)'
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=False)
    assert (tmp_path / LOCK).exists()
    return tmp_path


def test_lock_refuses_a_second_run_and_names_the_first(tmp_path):
    with lock_run(tmp_path / 'run'):
        before = (tmp_path / 'run' / LOCK).read_bytes()
        with pytest.raises(UsageError, match=rf'--workdir=.*run: another run trains there \(process {os.getpid()} on '):
            lock_run(tmp_path / 'run').__enter__()
        assert (tmp_path / 'run' / LOCK).read_bytes() == before


def test_lock_leaves_nothing_behind_but_what_was_written(tmp_path):
    with lock_run(tmp_path / 'a' / 'b' / 'run'):
        assert [path.name for path in (tmp_path / 'a' / 'b' / 'run').iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    with lock_run(tmp_path / 'run'):
        (tmp_path / 'run' / 'config.json').write_text('{}')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['config.json']
    (tmp_path / 'mine').mkdir()
    with pytest.raises(KeyError), lock_run(tmp_path / 'mine' / 'run'):
        raise KeyError
    assert list((tmp_path / 'mine').iterdir()) == []


def test_lock_of_a_killed_process_is_stale(stale, log_lines):
    with lock_run(stale):
        assert holder(stale)['pid'] == os.getpid()
    assert 'has ended' in log_lines[0] and not (stale / LOCK).exists()


def test_lock_of_a_reused_process_id_is_stale(tmp_path):
    with lock_run(tmp_path):
        rewrite(tmp_path, process_start='1')
        with lock_run(tmp_path):
            assert holder(tmp_path)['process_start'] != '1'


@pytest.mark.parametrize('damage', ['', '{', '[1]', '{"host": "a"}'])
def test_lock_that_cannot_be_read_is_watched_then_replaced(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(run_lock, 'SETTLE_S', 0.05)
    monkeypatch.setattr(run_lock, 'WATCH_S', 0.2)
    monkeypatch.setattr(run_lock, '_POLL_S', 0.05)
    (tmp_path / LOCK).write_text(damage)
    with lock_run(tmp_path):
        assert holder(tmp_path)['pid'] == os.getpid()


def test_lock_of_another_machine_is_watched(tmp_path, monkeypatch, log_lines):
    monkeypatch.setattr(run_lock, 'WATCH_S', 1.0)
    monkeypatch.setattr(run_lock, '_POLL_S', 0.05)
    monkeypatch.setattr(run_lock, 'HEARTBEAT_S', 0.1)
    with lock_run(tmp_path):  # rewrites its lock
        monkeypatch.setattr(run_lock, '_machine', lambda: 'another')
        with pytest.raises(UsageError, match='another run trains there'):
            lock_run(tmp_path).__enter__()
        assert 'waiting 1 s for a sign of life' in log_lines[0]
    monkeypatch.undo()
    monkeypatch.setattr(run_lock, 'WATCH_S', 0.3)
    monkeypatch.setattr(run_lock, '_POLL_S', 0.05)
    with lock_run(tmp_path):  # does not, within that time
        monkeypatch.setattr(run_lock, '_machine', lambda: 'another')
        with lock_run(tmp_path):
            pass


def test_run_that_lost_its_lock_stops(tmp_path):
    with lock_run(tmp_path) as check:
        check()
        rewrite(tmp_path, token='another')
        with pytest.raises(CheckpointError, match='another process has taken'):
            check()
    assert holder(tmp_path)['token'] == 'another'  # not this run's to remove


def test_lock_of_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UsageError, match=r'--workdir=.*run: cannot be written to'):
        lock_run(tmp_path / 'file' / 'run').__enter__()


def _take(folder, queue, ready):
    ready.wait()
    try:
        run_lock.RunLock(folder)
        queue.put(True)
        ready.wait()  # holds it until all have tried
    except UsageError:
        queue.put(False)
        ready.wait()
    os._exit(0)


@pytest.mark.filterwarnings('ignore:os.fork')  # what is run there uses neither JAX nor its threads
def test_one_of_many_takes_a_stale_lock(stale):
    context, count = multiprocessing.get_context('fork'), 6
    for _ in range(5):
        queue, ready = context.SimpleQueue(), context.Barrier(count)
        processes = [context.Process(target=_take, args=(stale, queue, ready)) for _ in range(count)]
        for process in processes:
            process.start()
        assert sum(queue.get() for _ in range(count)) == 1
        for process in processes:
            process.join()
        assert [path.name for path in stale.iterdir()] == [LOCK]
