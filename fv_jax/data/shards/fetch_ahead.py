"""Fetches shards ahead, in the order in which the examples need them, which is known.

A thread runs through the coming examples, as far ahead as their shards fit into the cache, and reserves each shard when
it meets its first example. A shard is released after its last one.
"""

import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType

from fv_jax.data.shards.shard_cache import RemoteShard, ShardCache, ShardFuture

log = logging.getLogger(__name__)

_THREADS = 4  # shards that are fetched at once, each in several requests
_MAX_EXAMPLES = 2**14  # that are looked ahead
_RETRY_S = 5.0  # until the next attempt to fetch into a cache that was full


class FetchAhead:
    """A context in which threads fetch the shards of the coming examples."""

    def __init__(
        self, needs: Callable[[int], RemoteShard | None], first: int, cache: ShardCache, budget: float, slack: int = 0
    ):
        """Args:
        needs: example -> the shard that it is in; None if that need not be fetched.
        first: the first example.
        cache: reserves the shards.
        budget: most bytes that are reserved at a time.
        slack: how many examples before the last one that was started may not be finished.
        """
        self._needs, self._first, self._cache = needs, first, cache
        self._budget, self._slack = budget, slack
        self._reached, self._closed, self._warned = first, False, False
        self._last: dict[str, int] = {}  # URL of a reserved shard -> the last example so far that needs it
        self._bytes: dict[str, int] = {}
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[tuple[RemoteShard, ShardFuture] | None] = queue.SimpleQueue()

    def __enter__(self) -> 'FetchAhead':
        threads = [threading.Thread(target=self._plan, name='shards needed', daemon=True)]
        threads += [threading.Thread(target=self._fetch, name='fetch shards', daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            released = list(self._last)
            self._last.clear()
        for url in released:
            self._cache.release(url)
        for _ in range(_THREADS):
            self._queue.put(None)

    def reach(self, example: int) -> None:
        """Notes that an example is about to be read."""
        with self._changed:
            if example > self._reached:
                self._reached = example
                self._changed.notify_all()

    def _plan(self) -> None:
        example = self._first
        while True:
            shard = self._needs(example)
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._reserve(example, shard))  # noqa: B023
                if self._closed:
                    return
            example += 1

    def _reserve(self, example: int, shard: RemoteShard | None) -> bool:
        """Reserves the shard of an example; returns False if it is too far ahead."""
        done = self._reached - self._slack
        for url in [url for url, last in self._last.items() if last < done]:
            del self._last[url], self._bytes[url]
            self._cache.release(url)
        if example - self._reached > _MAX_EXAMPLES:
            return False
        if shard is None:
            return True
        if shard.url not in self._last:
            if self._bytes and sum(self._bytes.values()) + shard.info.size > self._budget:
                return False
            self._bytes[shard.url] = shard.info.size
            if (future := self._cache.reserve(shard)) is not None:
                self._queue.put((shard, future))
        self._last[shard.url] = example
        return True

    def _fetch(self) -> None:
        while (job := self._queue.get()) is not None:
            if not self._cache.fetch(*job):
                self._give_up(job[0].url)

    def _give_up(self, url: str) -> None:
        """Ends the reservation of a shard for which the cache has no room, and waits; its next example tries again."""
        with self._changed:
            if self._last.pop(url, None) is not None:
                del self._bytes[url]
                self._cache.release(url)
            if not self._warned:
                log.warning(f'{url}: cannot be fetched ahead, all that the cache folder holds is in use')
            self._warned = True
            self._changed.wait_for(lambda: self._closed, timeout=_RETRY_S)
