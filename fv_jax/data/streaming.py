"""What the loader needs to know of sources whose shards are fetched while they are read.

Such a source has two methods besides those of a DataSource: `layout() -> ShardLayout | None`, how its records are
divided into shards, and `remote_shard(index) -> RemoteShard | None`, the shard that a record is in. Sources that are
made of it have them too. None is for records that need not be fetched.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fv_jax.core.cache_folder import list_items, make_cache_folder, read_limit, total_size
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import format_bytes
from fv_jax.data.shard_order import ShardLayout
from fv_jax.data.shards.fetch_ahead import FetchAhead
from fv_jax.data.shards.shard_cache import RemoteShard, ShardCache


def find_layout(source: Any) -> ShardLayout | None:
    """Returns how the records of a source are divided into shards that are fetched; None if none is."""
    layout = getattr(source, 'layout', None)
    return layout() if layout else None


def find_shard(source: Any, index: int) -> RemoteShard | None:
    """Returns the shard that must be fetched for a record of a source, if any."""
    remote_shard = getattr(source, 'remote_shard', None)
    return remote_shard(index) if remote_shard else None


def find_caches(source: Any) -> list[ShardCache]:
    """Returns the caches that hold the shards of a source and of those that it is made of."""
    if (cache := getattr(source, 'cache', None)) is not None:
        return [cache]
    return [cache for inner in getattr(source, 'sources', ()) for cache in find_caches(inner)]


def fetch_ahead(
    parts: Sequence[Any], needs: Callable[[int], RemoteShard | None], first: int, num_threads: int
) -> FetchAhead | None:
    """Prepares to fetch the shards of the coming examples.

    Args:
      parts: the `WeightedSource`s of the examples.
      needs: example -> the shard that it is in, if that must be fetched.
      first: the first example.
      num_threads: that read examples.

    Returns:
      None if no shard must be fetched.

    Raises:
      ConfigError: the cache is too small for the windows of shards.
      OSError: the cache folder cannot be used.
    """
    layouts = [layout for part in parts if (layout := part.layout()) is not None]
    if not layouts:
        return None
    whole = {id(part.source): layout for part in parts if (layout := find_layout(part.source)) is not None}
    total = sum(int(layout.bytes.sum()) for layout in whole.values())
    needed = min(total, sum(layout.needed_bytes() for layout in layouts))
    cache, *others = [cache for part in parts for cache in find_caches(part)]
    assert all(other is cache for other in others), 'the sources of a run share one cache'
    folder = make_cache_folder()
    limit = min(cache.limit, read_limit(folder, total_size(list_items(folder))), key=lambda limit: limit.bytes)
    require(
        needed <= limit.bytes,
        f'the shards that are needed at a time have up to {format_bytes(needed)}, and {format_bytes(limit.bytes)} of '
        f'the cache folder are for shards; {limit.fix}, lower config.data.window_shards, or prepare smaller shards '
        '(--config.shard_mb)',
        ConfigError,
    )
    # The other half is for processes of this host that are ahead or behind, and so need other shards.
    budget = limit.bytes if total <= limit.bytes else max(limit.bytes / 2, needed)
    return FetchAhead(needs, first, cache, budget, slack=num_threads + 1)


@contextlib.contextmanager
def read_in_order(source: Any, slack: int = 0) -> Iterator[Iterator[int]]:
    """A context with the indices of all records of a source, whose shards are fetched ahead.

    slack: how many records before the last index may not have been read.
    """
    count = len(source)
    if find_layout(source) is None:
        yield iter(range(count))
        return

    def find(index: int) -> RemoteShard | None:
        return find_shard(source, index) if index < count else None

    (cache, *_) = find_caches(source)
    with FetchAhead(find, 0, cache, cache.limit.bytes / 2, slack) as ahead:

        def indices() -> Iterator[int]:
            for index in range(count):
                ahead.reach(index)
                yield index

        yield indices()
