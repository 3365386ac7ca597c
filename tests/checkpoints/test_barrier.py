"""The barrier of several processes, and its abort. Threads stand in for the processes."""

import threading
import time

import jax
import orbax.checkpoint as ocp
import pytest

from fv_jax.checkpoints.barrier import Barrier, BarrierAbortedError


@pytest.fixture
def barriers(monkeypatch):
    """Two barriers of one name, as two processes have them."""
    places, lock = {}, threading.Lock()

    def wait(*, key, timeout_ms):
        with lock:
            place = places.setdefault(key, threading.Barrier(2))
        place.wait(timeout_ms / 1000)

    monkeypatch.setattr(ocp.multihost, 'get_barrier_sync_fn', lambda: wait)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    found = Barrier('run'), Barrier('run')
    for barrier in found:
        barrier.reset()
    return found


def come(barrier, key, output):
    def run():
        try:
            barrier(key=key, timeout_ms=20_000)
            output.append('reached')
        except BarrierAbortedError:
            output.append('aborted')

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def threads_of_jax():
    return sum(thread.name == 'barrier' for thread in threading.enumerate())


def test_barrier_waits_for_all_processes_at_each_key(barriers):
    first, second = barriers
    for key in ('write', 'commit', 'write'):
        output = []
        one = come(first, key, output)
        one.join(0.1)
        assert one.is_alive()
        other = come(second, key, output)
        one.join(), other.join()
        assert output == ['reached', 'reached']


def test_barrier_abort_releases_waiting_threads_until_reset(barriers):
    first, second = barriers
    output, began = [], time.monotonic()
    waits = come(first, 'write', output)
    failed = come(second, 'end', output)  # it could not write, and is further on
    keys = [key for barrier in barriers for key in barrier.abort()]
    waits.join(), failed.join()
    come(first, 'end', output).join()
    assert output == ['aborted'] * 3 and time.monotonic() - began < 10
    assert len(keys) == 2 and threads_of_jax() == 2  # which wait for the other process
    for thread in [threading.Thread(target=barrier.release, args=(keys,)) for barrier in barriers]:
        thread.start()
    while threads_of_jax():
        time.sleep(0.01)
    assert time.monotonic() - began < 10
    for barrier in barriers:
        barrier.reset()
    output = []
    for thread in [come(barrier, 'write', output) for barrier in barriers]:
        thread.join()
    assert output == ['reached', 'reached']


def test_barrier_is_skipped_where_orbax_only_synchronizes_a_value(barriers):
    barriers[0](key='ThreadSaveMultiHostValueHolder:set_value_start', timeout_ms=20_000)


def test_barrier_of_one_process_returns_at_once(monkeypatch):
    Barrier('run')(key='write', timeout_ms=1)
