"""Shards are fetched in the order in which examples need them, within a budget, and released after the last one."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from fv_jax.core.storage.store import FileInfo
from fv_jax.data.shards import fetch_ahead
from fv_jax.data.shards.fetch_ahead import FetchAhead
from fv_jax.data.shards.shard_cache import RemoteShard, ShardFuture

SIZE = 10


class Cache:
    """A cache that notes what is reserved, fetched and released."""

    def __init__(self, is_full: bool = False):
        self.reserved, self.fetched, self.released, self.most = [], [], [], 0
        self._held, self._lock, self.is_full = set(), threading.Lock(), is_full

    def reserve(self, shard: RemoteShard) -> ShardFuture:
        self.reserved.append(shard.url)
        self._held.add(shard.url)
        self.most = max(self.most, len(self._held))
        return Future()

    def release(self, url: str) -> None:
        self.released.append(url)
        self._held.remove(url)

    def fetch(self, shard: RemoteShard, future: ShardFuture) -> bool:
        with self._lock:
            self.fetched.append(shard.url)
        return not self.is_full


def shard(number: int) -> RemoteShard:
    return RemoteShard(f'gs://b/{number}', FileInfo(SIZE, '1'), 1)


def urls(numbers) -> list[str]:
    return [shard(int(number)).url for number in numbers]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_shards_are_reserved_in_the_order_of_need_within_the_budget():
    order = np.repeat(np.arange(50), 4)  # four examples of each
    cache = Cache()
    with FetchAhead(lambda i: shard(order[i]) if i < len(order) else None, 0, cache, 5 * SIZE) as ahead:
        wait_until(lambda: cache.reserved == urls(range(5)))
        for i in range(len(order)):
            ahead.reach(i)
            wait_until(lambda i=i: cache.released == urls(range(i // 4)))  # each after its last example
            wait_until(lambda i=i: cache.reserved == urls(range(min(i // 4 + 5, 50))))
    assert cache.reserved == urls(range(50)) and cache.most == 5 and sorted(cache.fetched) == sorted(cache.reserved)
    assert sorted(cache.released) == sorted(cache.reserved)  # the last ones at the end


def test_shard_that_is_needed_again_soon_is_kept():
    cache = Cache()
    numbers = [0, 1, 2, 3, 0, 4, 0, 5]
    with FetchAhead(lambda i: shard(numbers[i]) if i < len(numbers) else None, 0, cache, 4 * SIZE) as ahead:
        wait_until(lambda: cache.reserved == urls([0, 1, 2, 3]))
        ahead.reach(3)
        wait_until(lambda: cache.reserved == urls(range(6)))
        assert sorted(cache.released) == urls([1, 2])


def test_examples_that_may_still_be_read_keep_their_shards():
    cache = Cache()
    with FetchAhead(lambda i: shard(i), 0, cache, 4 * SIZE, slack=2) as ahead:
        ahead.reach(3)
        wait_until(lambda: cache.released)
        assert cache.released == urls([0])


def test_shard_larger_than_the_budget_is_reserved_alone():
    cache = Cache()
    with FetchAhead(lambda i: shard(i), 0, cache, SIZE / 2) as ahead:
        wait_until(lambda: cache.reserved == urls([0]))
        ahead.reach(1)
        wait_until(lambda: cache.reserved == urls([0, 1]))
    assert cache.most == 1


def test_local_examples_are_looked_through_but_not_without_end():
    seen = []

    def needs(example: int) -> None:
        seen.append(example)

    with FetchAhead(needs, 7, Cache(), SIZE):
        wait_until(lambda: len(seen) > 2**14)
        time.sleep(0.05)
        assert len(seen) == 2**14 + 2 and seen[0] == 7


def test_full_cache_is_asked_again_later(monkeypatch, log_lines):
    cache, has_room = Cache(is_full=True), threading.Event()
    monkeypatch.setattr(fetch_ahead, '_RETRY_S', 0.2)

    def needs(example: int):
        if example >= 8:  # the examples that need the shards again come once there is room
            has_room.wait()
        return shard(example % 8)

    with FetchAhead(needs, 0, cache, 8 * SIZE):
        wait_until(lambda: len(cache.released) == 4)  # one by each thread
        time.sleep(0.05)
        assert sorted(cache.fetched) == urls(range(4))
        cache.is_full = False
        has_room.set()
        wait_until(lambda: {*cache.fetched[4:]} == {*urls(range(8))})
    assert len(log_lines) == 1 and 'cannot be fetched ahead' in log_lines[0]


def test_threads_end_with_the_context():
    before = set(threading.enumerate())  # also those of other tests, which may wait for a server

    def running() -> int:
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return sum(name in ('shards needed', 'fetch shards') for name in names)

    with pytest.raises(KeyError), FetchAhead(shard, 0, Cache(), 3 * SIZE):
        assert running() == 5
        raise KeyError
    wait_until(lambda: running() == 0)
