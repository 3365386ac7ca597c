"""The loader on sources whose shards are fetched while they are read, in place of object storage one that counts."""

import contextlib
import itertools

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.storage.store import FileInfo
from fv_jax.data import sources
from fv_jax.data.loader import BatchStream, LoaderConfig, WeightedSource, load_mixed_batches
from fv_jax.data.shard_order import ShardLayout
from fv_jax.data.shards.shard_cache import RemoteShard, ShardCache
from fv_jax.data.streaming import find_caches, find_layout, find_shard

SHARD_BYTES = 10**6


class Remote:
    """Records in shards of 8, of which none is really fetched."""

    def __init__(self, shards: int, name: str = 'a', window: int = 3, limit_gb: float = 1.0):
        self.cache, self._shards, self._name, self._window = ShardCache(limit_gb), shards, name, window
        self.cache.reserve = lambda shard: None
        self.read = []

    def __len__(self) -> int:
        return 8 * self._shards

    def __getitem__(self, index: int) -> dict:
        self.read.append(index // 8)
        return {'i': index, 'name': self._name}

    def layout(self) -> ShardLayout:
        return ShardLayout(np.full(self._shards, 8), np.full(self._shards, SHARD_BYTES), self._window)

    def remote_shard(self, index: int) -> RemoteShard:
        return RemoteShard(f'gs://{self._name}/{index // 8}', FileInfo(SHARD_BYTES, '1'), 8)


def local(count: int, name: str = 'b') -> list[dict]:
    return [{'i': i, 'name': name} for i in range(count)]


def load(record: dict, rng: np.random.Generator) -> dict:
    return {'i': np.asarray(record['i']), 'of': np.asarray(ord(record['name']))}


def draw(count: int, *parts: WeightedSource, seed: int = 1, batch: int = 4, **options) -> list[tuple[str, int]]:
    """Returns the source and the index of each record of so many batches."""
    stream = BatchStream(parts, load, batch)
    config = LoaderConfig(4, seed=seed, num_threads=2)
    with contextlib.closing(load_mixed_batches([stream], config, **options)) as found:
        drawn = list(itertools.islice(found, count))
    return [(chr(of), int(i)) for each in drawn for of, i in zip(each['of'], each['i'], strict=True)]


def test_joined_local_and_remote_sources_are_mixed_in_one_order():
    joined = sources.ConcatSource([Remote(10), local(43)])
    layout = find_layout(joined)
    assert layout.counts.tolist() == [8] * 15 + [3] and layout.bytes.tolist() == [SHARD_BYTES] * 10 + [0] * 6
    assert find_shard(joined, 79).url == 'gs://a/9' and find_shard(joined, 80) is None
    epoch = draw(123, WeightedSource('both', joined), batch=1)
    assert sorted(epoch) == [*(('a', i) for i in range(80)), *(('b', i) for i in range(43))]
    half = [name for name, _ in epoch[:60]]
    assert 10 < half.count('b') < 33


def test_weighted_sources_have_their_own_order():
    parts = WeightedSource('a', Remote(10), weight=3.0), WeightedSource('b', local(50), weight=1.0)
    drawn = draw(60, *parts)
    here = [i for name, i in drawn if name == 'a']
    assert len(here) == 180 and sorted(here[:80]) == sorted(here[80:160]) == list(range(80))
    # The local one is shuffled as it is beside a local one.
    there = [i for name, i in drawn if name == 'b']
    alone = draw(60, WeightedSource('a', local(80, 'a'), weight=3.0), WeightedSource('b', local(50), weight=1.0))
    assert there == [i for name, i in alone if name == 'b']


def test_sources_made_of_a_remote_one_have_its_order():
    class Clips(Remote):
        def __getitem__(self, index: int) -> dict:
            return {'video': np.full((3, 2, 2, 3), index, np.uint8)}

    source = Clips(10)
    stills = sources.FirstFrames(source)
    assert find_layout(stills).counts.tolist() == [8] * 10 and find_shard(stills, 9).url == 'gs://a/1'
    assert find_caches(stills) == find_caches(sources.ConcatSource([stills, local(3)])) == [source.cache]
    assert find_layout(local(3)) is None and find_shard(local(3), 1) is None and find_caches(local(3)) == []


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_window_bounds_the_shards_of_consecutive_batches(process_count: int):
    for process in range(process_count):
        source = Remote(40)
        draw(80, WeightedSource('a', source), process=(process, process_count))
        # A slot has eight examples. Two threads and two batches are ahead of a batch in the order of the reads.
        for first in range(0, len(source.read) - 8 // process_count, 8 // process_count):
            assert len(set(source.read[first : first + 8 // process_count])) <= 3 + 2


def test_needed_bytes_are_those_of_the_windows_of_all_sources():
    part = WeightedSource('a', Remote(40, limit_gb=4.9 * SHARD_BYTES / 1e9))
    with pytest.raises(ConfigError, match=r'have up to 5 MB, and 4.9 MB of .*config.data.cache_gb to more'):
        draw(1, part)
    draw(1, WeightedSource('a', Remote(40, limit_gb=5.1 * SHARD_BYTES / 1e9)))
    draw(1, WeightedSource('a', Remote(4, limit_gb=4.1 * SHARD_BYTES / 1e9)))  # all of it
    two = [WeightedSource(name, Remote(40, name, limit_gb=9.9 * SHARD_BYTES / 1e9)) for name in 'ab']
    two[1].source.cache = two[0].source.cache
    with pytest.raises(ConfigError, match='have up to 10 MB'):
        draw(1, *two)


def test_records_of_a_bucket_keep_their_shards():
    indices = np.flatnonzero(np.arange(80) % 8 < np.arange(80) // 8).astype(np.uint32)  # s records of shard s
    part = WeightedSource('a', Remote(10), indices)
    assert part.layout().counts.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8] and len(part) == 44
    assert part.remote_shard(0).url == 'gs://a/1' and part.remote_shard(43).url == 'gs://a/9'
    assert sorted(i for _, i in draw(11, part)) == indices.tolist()
