"""Threads of several processes that wait for each other, and that can be let go. Threads stand in for the processes."""

import threading
import time

import jax
import orbax.checkpoint as ocp
import pytest

from fv_jax.checkpoints.barrier import Barrier, GivenUpError


@pytest.fixture
def barriers(monkeypatch):
    """Two, as two processes have them."""
    places, lock = {}, threading.Lock()

    def wait(*, key, timeout_ms):
        with lock:
            place = places.setdefault(key, threading.Barrier(2))
        place.wait(timeout_ms / 1000)

    monkeypatch.setattr(ocp.multihost, 'get_barrier_sync_fn', lambda: wait)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    found = Barrier('run'), Barrier('run')
    for barrier in found:
        barrier.renew()
    return found


def come(barrier, key, said):
    def run():
        try:
            barrier(key=key, timeout_ms=20_000)
            said.append('met')
        except GivenUpError:
            said.append('given up')

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_all_wait_for_all_at_every_place(barriers):
    first, second = barriers
    for key in ('write', 'commit', 'write'):
        said = []
        one = come(first, key, said)
        one.join(0.1)
        assert one.is_alive()
        other = come(second, key, said)
        one.join(), other.join()
        assert said == ['met', 'met']


def test_who_waits_for_one_that_will_not_come_is_let_go_and_meets_it_at_the_next_save(barriers):
    first, second = barriers
    said, began = [], time.monotonic()
    waits = come(first, 'write', said)
    failed = come(second, 'end', said)  # it could not write, and is further on
    for barrier in barriers:
        barrier.give_up()
    waits.join(), failed.join()
    come(first, 'end', said).join()
    assert said == ['given up'] * 3 and time.monotonic() - began < 10
    for barrier in barriers:
        barrier.renew()
    said = []
    for thread in [come(barrier, 'write', said) for barrier in barriers]:
        thread.join()
    assert said == ['met', 'met']


def test_one_that_could_not_write_is_not_held_up_on_its_way_to_say_so(barriers):
    barriers[0](key='ThreadSaveMultiHostValueHolder:set_value_start', timeout_ms=20_000)


def test_one_process_waits_for_nobody(monkeypatch):
    Barrier('run')(key='write', timeout_ms=1)
