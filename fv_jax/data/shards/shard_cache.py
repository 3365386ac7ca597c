"""Shards of object storage on the local disk: fetched whole, and kept while they are needed, within `data.cache_gb`.

They are entries of the cache folder (`core/cached_files.py`), which the processes of a host share. A process holds
those open that it needs now or soon (`fetch_ahead.py`); the others stay until their room is needed.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordReader

from fv_jax.core import files
from fv_jax.core.cache_folder import GB, CacheFullError, Limit
from fv_jax.core.cached_files import Entry, open_entry
from fv_jax.core.paths import as_path
from fv_jax.core.storage.store import FileInfo
from fv_jax.data.shards.shard_files import ShardError, open_reader

_MAX_IDLE = 4  # shards that stay open although it is not known whether they are needed again
_FILE = 'shard'  # name of the file in its entry
_PATIENCE_S, _RETRY_S = 60.0, 1.0  # how long other processes may leave no room for a shard; between two attempts


class RemoteShard(NamedTuple):
    """A shard in object storage.

    Attributes:
      url: where it is.
      info: what its listing stated when it was opened.
      records: how many it must have; None if that is not known.
    """

    url: str
    info: FileInfo
    records: int | None


class OpenShard(NamedTuple):
    """A shard on the local disk, where it stays until its entry is closed."""

    reader: ArrayRecordReader
    entry: Entry


ShardFuture = Future[OpenShard | None]  # None: the cache was full


class ShardCache:
    """The shards that a process has open, and those that are being fetched. Thread-safe.

    Attributes:
      limit: of all shards in the cache folder of this host.
      statistics: of all reads so far.
    """

    def __init__(self, limit_gb: float):
        self.limit = Limit(limit_gb * GB, 'set config.data.cache_gb to more')
        self.statistics = Statistics()
        self._lock = threading.Lock()
        # By URL, those that were opened last at the end. Reserved ones stay until they are released. A future that is
        # done has a result: those that fail are removed.
        self._shards: collections.OrderedDict[str, ShardFuture] = collections.OrderedDict()
        self._reserved: dict[str, None] = {}

    def open(self, shard: RemoteShard) -> ArrayRecordReader:
        """Returns the reader of a shard, which is fetched if it is not here.

        Raises:
          ShardError: it is not a shard with so many records.
          OSError: it does not fit into the cache, cannot be fetched, or was replaced.
        """
        with self._lock:
            future = self._shards.get(shard.url)
            is_hit = future is not None and future.done()
            if is_hit:
                self._shards.move_to_end(shard.url)
        self.statistics.count_read(is_hit)
        if is_hit:
            return future.result().reader
        with self.statistics.waiting():
            return self._await(shard).reader

    def _await(self, shard: RemoteShard) -> OpenShard:
        while True:
            with self._lock:
                future = self._shards.get(shard.url)
                # One that waits for a thread is fetched by this one.
                if is_mine := future is None or future.cancel():
                    future = self._shards[shard.url] = Future()
                    future.set_running_or_notify_cancel()
            if is_mine:
                self._fetch_into(future, shard, make_room=True)
                self._close_idle()
            if (found := future.result()) is not None:
                return found

    def reserve(self, shard: RemoteShard) -> ShardFuture | None:
        """Keeps a shard open from now on, or, if it is not here, returns a future for `fetch`."""
        with self._lock:
            self._reserved[shard.url] = None
            if shard.url in self._shards:
                return None
            future = self._shards[shard.url] = Future()
            return future

    def fetch(self, shard: RemoteShard, future: ShardFuture) -> bool:
        """Fetches a reserved shard, unless it was released or another thread does.

        Errors are not raised here but by `open`, which tries again.

        Returns:
          False if the cache is full: all that it holds is in use.
        """
        if not future.set_running_or_notify_cancel():
            return True
        self._fetch_into(future, shard, make_room=False)
        self._close_idle()  # it may have been released meanwhile
        return future.exception() is not None or future.result() is not None

    def release(self, url: str) -> None:
        """Ends the reservation of a shard."""
        with self._lock:
            self._reserved.pop(url, None)
            future = self._shards.get(url)
            if future is not None and future.cancel():
                del self._shards[url]
        self._close_idle()

    def _fetch_into(self, future: ShardFuture, shard: RemoteShard, make_room: bool) -> None:
        opened = error = None
        try:
            opened = self._fetch(shard, make_room)
        except BaseException as caught:
            error = caught
        with self._lock:
            if opened is None and self._shards.get(shard.url) is future:
                del self._shards[shard.url]
        if error is None:
            future.set_result(opened)
        else:
            future.set_exception(error)

    def _fetch(self, shard: RemoteShard, make_room: bool) -> OpenShard | None:
        def download(folder: Path) -> None:
            try:
                files.download(as_path(shard.url), folder / _FILE, shard.info)
            except FileNotFoundError:
                raise FileNotFoundError(f'{shard.url}: was removed since the run has started') from None
            self.statistics.count_fetch(shard.info.size)

        key, deadline = f'{shard.url}@{shard.info.version}', time.monotonic() + _PATIENCE_S
        while True:
            try:
                entry = open_entry('shards', key, shard.info.size, download, limit=self.limit)
                break
            except CacheFullError:
                if not make_room:
                    return None
                if self._close_last():
                    continue
                # Other processes of this host may release some.
                if shard.info.size > self.limit.bytes or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)
        try:
            return OpenShard(open_reader(shard.url, entry.folder / _FILE, shard.records), entry)
        except ShardError:
            entry.close()
            raise

    def _close_idle(self) -> None:
        """Closes shards that are not reserved, except those that were opened last."""
        with self._lock:
            idle = [url for url, future in self._shards.items() if url not in self._reserved and future.done()]
            closed = [self._shards.pop(url) for url in idle[:-_MAX_IDLE]]
        _close(closed)

    def _close_last(self) -> bool:
        """Closes the shard that can be missed best; returns False if none is open."""
        with self._lock:
            done = [url for url, future in self._shards.items() if future.done()]
            idle = [url for url in done if url not in self._reserved]
            # Shards are reserved in the order in which they are needed.
            last = idle[:1] or [url for url in self._reserved if url in done][-1:]
            closed = [self._shards.pop(url) for url in last]
        _close(closed)
        return bool(closed)


def _close(futures: list[ShardFuture]) -> None:
    for future in futures:
        future.result().entry.close()  # threads that read from it still have its file open


class Statistics:
    """Counts reads of remote shards. Thread-safe.

    Attributes:
      reads, hits: reads of a record so far, and those whose shard was open.
      fetched_bytes: of all shards that this process has fetched.
    """

    def __init__(self):
        self.reads = self.hits = self.fetched_bytes = 0
        self._lock = threading.Lock()
        self._waiting, self._since, self._seconds = 0, 0.0, 0.0

    def count_read(self, is_hit: bool) -> None:
        with self._lock:
            self.reads, self.hits = self.reads + 1, self.hits + is_hit

    def count_fetch(self, size: int) -> None:
        with self._lock:
            self.fetched_bytes += size

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which a thread waits for a shard."""
        with self._lock:
            self._since = self._since if self._waiting else time.monotonic()
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                self._seconds += 0.0 if self._waiting else time.monotonic() - self._since

    @property
    def waited_s(self) -> float:
        """The time during which at least one thread has waited for a shard."""
        with self._lock:
            return self._seconds + (time.monotonic() - self._since if self._waiting else 0.0)

    def metrics(self) -> dict[str, float]:
        """Returns the share of reads that did not wait for a shard, the seconds of waiting, and the GB fetched."""
        return {
            'shard_hit_rate': self.hits / max(self.reads, 1),
            'shard_wait_seconds': self.waited_s,
            'shard_gigabytes': self.fetched_bytes / GB,
        }
