"""Locks between processes and threads."""

import os
import subprocess
import sys
import threading

from fv_jax.core.file_locks import acquire_lock, exclusive_lock, release_lock
from tests import runs


def test_exclusive_lock_excludes_all_and_shared_ones_only_exclusive_ones(tmp_path):
    path = tmp_path / 'folder' / 'lock'
    first = acquire_lock(path, shared=True)
    second = acquire_lock(path, shared=True, wait=False)
    assert None not in (first, second) and acquire_lock(path, wait=False) is None
    release_lock(first)
    assert acquire_lock(path, wait=False) is None
    release_lock(second)
    with exclusive_lock(path):
        assert acquire_lock(path, wait=False) is None and acquire_lock(path, shared=True, wait=False) is None
    release_lock(acquire_lock(path, wait=False))


def test_lock_is_released_when_its_process_dies(tmp_path):
    program = f"""
import pathlib, time
from fv_jax.core.file_locks import acquire_lock
acquire_lock(pathlib.Path({str(tmp_path / 'lock')!r}))
print('locked', flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, '-c', program], cwd=runs.ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'locked\n'
        assert acquire_lock(tmp_path / 'lock', wait=False) is None
        process.kill()
    assert acquire_lock(tmp_path / 'lock', wait=False) is not None


def test_waiting_for_a_lock_whose_file_is_removed_locks_the_new_file(tmp_path):
    path, found = tmp_path / 'lock', []
    holder = acquire_lock(path)
    waiting = threading.Thread(target=lambda: found.append(acquire_lock(path)))
    waiting.start()
    waiting.join(0.1)
    assert not found
    path.unlink()
    release_lock(holder)
    waiting.join(10)
    assert os.path.samestat(os.fstat(found[0]), path.stat()) and acquire_lock(path, wait=False) is None
