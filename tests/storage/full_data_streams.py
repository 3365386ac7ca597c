"""Shards in object storage as training data: fetched ahead, in a window, within a limit; and what faults do to that."""

import contextlib
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from fv_jax.core import files
from fv_jax.core.cache_folder import GB, list_items, trim
from fv_jax.core.config import ConfigError
from fv_jax.core.paths import as_path
from fv_jax.data.loader import BatchStream, LoaderConfig, WeightedSource, load_mixed_batches
from fv_jax.data.shards import shard_cache
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecordError, BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.remote import RemoteShards
from fv_jax.data.shards.shard_cache import ShardCache
from fv_jax.data.streaming import read_in_order
from fv_jax.training.run.datasets import TrainBatches
from tests.storage.faults import Fault

SHARDS, SHARD_RECORDS = 12, 8
RECORDS = SHARDS * SHARD_RECORDS
CONFIG = LoaderConfig(batch_size=4, seed=3, num_threads=3)


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """A local set of 12 shards of 8 records."""
    with RecordWriter(tmp_path_factory.mktemp('shards'), 'clips', shard_records=SHARD_RECORDS) as writer:
        for i in range(RECORDS):
            noise = np.random.default_rng(i).bytes(2000)
            writer.write({'i': i, 'noise': noise, 'frames': 9, 'height': 32, 'width': 48 + 16 * (i % 2)})
    return writer.shards[0].parent


def upload(shards, bucket):
    """Uploads the set, and returns its folder; the proxy does not count it."""
    for path in shards.iterdir():
        bucket.write(f'data/{path.name}', path.read_bytes())
    return as_path(f'{bucket.url}/data')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The empty cache folder."""
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def folder(shards, gs_bucket):
    return upload(shards, gs_bucket)


def shard_bytes(folder) -> int:
    return max(info.size for name, info in files.list_files(folder).items() if name.endswith('.array_record'))


def open_shards(folder, limit: float = 1e9, window: int = 3, **options) -> RemoteShards:
    """limit: of the cache, in bytes."""
    return RemoteShards(folder, ShardCache(limit / GB), window, **options)


def load(record, rng):
    return {'i': np.asarray(record['i'])}


def batches(source, *, start_step: int = 0, process=(0, 1), indices=None, bad=None):
    stream = BatchStream((WeightedSource('the source', source, indices),), load, 4)
    return load_mixed_batches([stream], CONFIG, start_step=start_step, process=process, bad=bad)


def draw(count: int, source, **options) -> np.ndarray:
    """Returns the records of so many batches."""
    with contextlib.closing(batches(source, **options)) as found:
        return np.concatenate([batch['i'] for batch in itertools.islice(found, count)])


def cached_bytes(cache: Path) -> int:
    """Returns the bytes of all shards in the cache, those that are being fetched included."""
    return sum(item.size for item in list_items(cache) if item.kind == 'shards')


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_stream_of_both_kinds_of_storage(shards, bucket):
    whole = draw(24, open_shards(upload(shards, bucket)))
    assert sorted(whole) == list(range(RECORDS))


def test_stream_has_every_record_once_an_epoch_for_any_number_of_processes(folder):
    whole = draw(48, open_shards(folder))
    assert sorted(whole[:RECORDS]) == sorted(whole[RECORDS:]) == list(range(RECORDS))
    assert (whole[:RECORDS] != whole[RECORDS:]).any()
    for count in (2, 4):
        parts = [draw(48, open_shards(folder), process=(p, count)).reshape(48, -1) for p in range(count)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1).ravel(), whole)
    np.testing.assert_array_equal(draw(11, open_shards(folder), start_step=37), whole[4 * 37 :])


def test_opening_a_stream_fetches_no_shard(folder, gs_bucket):
    source = open_shards(folder)
    assert len(source) == RECORDS and source.sizes().to_array()[:2].tolist() == [[9, 32, 48], [9, 32, 64]]
    assert source.record_name(9) == f'{folder}/clips-00001-of-00012.array_record, record 1'
    read = sum(request.down for request in gs_bucket.proxy.requests)
    assert read < shard_bytes(folder)


def test_stream_of_some_records_has_each_once_an_epoch(folder):
    indices = np.flatnonzero(np.arange(RECORDS) % 2 == 1).astype(np.uint32)[:40]
    whole = draw(20, open_shards(folder), indices=indices)
    assert sorted(whole[:40]) == sorted(whole[40:]) == indices.tolist()


def test_stream_fetches_each_shard_once_an_epoch_within_the_limit(folder, cache):
    limit = 6.5 * shard_bytes(folder)
    source = open_shards(folder, limit)
    found = batches(source)
    for _ in range(24):
        next(found)
        assert cached_bytes(cache) <= limit
        time.sleep(0.01)  # the step
    found.close()
    # The window moves on into the next epoch, and what was fetched ahead is of that one.
    assert SHARDS <= round(source.cache.statistics.fetched_bytes / shard_bytes(folder)) <= SHARDS + 7
    statistics = source.cache.statistics
    assert statistics.reads >= RECORDS and 0 < statistics.hits < statistics.reads and statistics.waited_s > 0


def test_stream_that_fits_the_cache_is_fetched_at_once(folder):
    source = open_shards(folder)
    statistics, total = source.cache.statistics, int(source.layout().bytes.sum())
    with contextlib.closing(batches(source)) as found:
        next(found)
        wait_until(lambda: statistics.fetched_bytes == total)
        wait_until(lambda: all(future.done() for future in list(source.cache._shards.values())))
        missed = statistics.reads - statistics.hits
        for _ in range(48):
            next(found)
    assert statistics.reads - statistics.hits == missed and statistics.fetched_bytes == total
    again = open_shards(folder)
    draw(24, again)
    assert again.cache.statistics.fetched_bytes == 0


def test_processes_of_a_host_share_the_cache(folder, cache):
    limit = 9.5 * shard_bytes(folder)
    sources = [open_shards(folder, limit) for _ in range(2)]
    drawn = []
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(contextlib.closing(batches(s, process=(p, 2)))) for p, s in enumerate(sources)]
        for _ in range(48):
            drawn += [next(found)['i'] for found in both]
            assert cached_bytes(cache) <= limit
    fetched = sum(source.cache.statistics.fetched_bytes for source in sources) / shard_bytes(folder)
    assert sorted(np.concatenate(drawn)) == sorted([*range(RECORDS)] * 2) and fetched < 3 * SHARDS


def test_few_shards_stay_open_that_may_not_be_needed_again(folder, cache):
    source = open_shards(folder)
    assert [source[i]['i'] for i in range(RECORDS)] == list(range(RECORDS))
    removed, left = trim(0, ['shards'])
    assert len(removed) == SHARDS - 4 and len(left) == 4  # those that are open stay in the cache


def test_shards_of_an_order_are_fetched_ahead(folder):
    source = open_shards(folder, 5.5 * shard_bytes(folder))
    statistics, size = source.cache.statistics, shard_bytes(folder)
    with read_in_order(source) as indices:
        found = []
        for i in indices:
            found.append(source[i]['i'])
            if i == 0:  # the next shard is fetched before it is needed
                wait_until(lambda: statistics.fetched_bytes > 1.9 * size)
                wait_until(lambda: all(future.done() for future in list(source.cache._shards.values())))
    assert found == list(range(RECORDS)) and round(statistics.fetched_bytes / size) == SHARDS
    assert statistics.hits > RECORDS - SHARDS


def test_window_that_does_not_fit_the_cache_is_an_error(folder):
    with pytest.raises(ConfigError, match=r'set config.data.cache_gb to more, lower .*window_shards') as error:
        batches(open_shards(folder, 4.5 * shard_bytes(folder)))
    assert '\n' not in str(error.value)
    draw(3, open_shards(folder, 4.5 * shard_bytes(folder), window=2))


def test_shard_larger_than_the_cache_is_an_error(folder):
    with pytest.raises(OSError, match=r'clips-00000-of-00012.*set config.data.cache_gb to more'):
        open_shards(folder, 0.9 * shard_bytes(folder))[0]


def test_cache_that_is_full_of_other_things_is_an_error(folder, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE_GB', str(0.5 * shard_bytes(folder) / GB))
    monkeypatch.setattr(shard_cache, '_PATIENCE_S', 0.1)
    with pytest.raises(ConfigError, match='set FV_JAX_CACHE_GB to more'):
        draw(3, open_shards(folder))
    with pytest.raises(OSError, match='set FV_JAX_CACHE_GB to more'):
        open_shards(folder)[0]


def test_shard_replaced_during_a_run_is_an_error(folder, shards, gs_bucket):
    source, size = open_shards(folder, 6.5 * shard_bytes(folder)), shard_bytes(folder)
    found = batches(source)
    next(found)
    wait_until(lambda: source.cache.statistics.fetched_bytes > 4.9 * size)  # all that fits is fetched
    for path in shards.glob('*.array_record'):  # with the same content
        gs_bucket.write(f'data/{path.name}', path.read_bytes())
    with pytest.raises(OSError, match=r'clips-\d+-of-00012.array_record: was replaced') as error:
        for _ in range(40):
            next(found)
    assert '\n' not in str(error.value)


def test_missing_shard_is_an_error(folder):
    source = open_shards(folder, 6.5 * shard_bytes(folder))
    for path in folder.glob('*.array_record'):
        path.unlink()
    with pytest.raises(OSError, match=r'clips-\d+-of-00012.array_record: was removed'):
        draw(3, source, bad=BadRecords(BadRecordConfig('skip')))


def test_damaged_shard_is_skipped_or_an_error(folder, gs_bucket):
    name = 'data/clips-00004-of-00012.array_record'
    gs_bucket.write(name, bytes(gs_bucket.sizes()[name]))
    with pytest.raises(BadRecordError, match=f'{folder}/clips-00004-of-00012.array_record: cut off or not'):
        draw(24, open_shards(folder))
    bad = BadRecords(BadRecordConfig('skip', max_bad_records=1))
    drawn = draw(24, open_shards(folder), bad=bad)
    assert list(bad.found) == [f'{folder}/clips-00004-of-00012.array_record']
    assert set(drawn) == set(range(RECORDS)) - set(range(32, 40))
    gs_bucket.write(name, b'short')
    with pytest.raises(BadRecordError, match=r'cut off or replaced: it has 5 bytes and clips.parquet states'):
        open_shards(folder)


@pytest.mark.parametrize('fault', [Fault(status=503, every=4), Fault(cut_after=1000, every=4)])
def test_stream_continues_through_faults(folder, gs_bucket, tmp_path, monkeypatch, fault):
    whole = draw(24, open_shards(folder))
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'other'))
    with gs_bucket.proxy.inject(fault):
        np.testing.assert_array_equal(draw(24, open_shards(folder)), whole)
    assert fault.num_applied > 2


def test_set_without_manifest(folder, gs_bucket, tmp_path, monkeypatch):
    whole = draw(24, open_shards(folder))
    (folder / 'clips.parquet').unlink()
    source = open_shards(folder)
    np.testing.assert_array_equal(draw(24, source), whole)
    assert source.sizes().to_array()[:2].tolist() == [[9, 32, 48], [9, 32, 64]]
    # As earlier versions wrote it: no shard is fetched to open it.
    names = [f'clips-{i:05d}-of-00012.array_record' for i in range(SHARDS)]
    sizes = [[9, 32, 48 + 16 * (i % 2), 1] for i in range(RECORDS)]
    index = {'name': 'clips', 'shards': dict.fromkeys(names, SHARD_RECORDS), 'sizes': sizes}
    gs_bucket.write('data/clips.json', json.dumps(index).encode())
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'other'))
    source = open_shards(folder)
    assert source.sizes().to_array()[:2].tolist() == [[9, 32, 48], [9, 32, 64]]
    assert source.cache.statistics.fetched_bytes == 0
    np.testing.assert_array_equal(draw(24, source), whole)


def test_folder_without_shards_or_bucket(gs_bucket):
    with pytest.raises(ValueError, match=f'{gs_bucket.url}/none: holds no .*array_record'):
        open_shards(as_path(f'{gs_bucket.url}/none'))
    with pytest.raises(OSError, match='no-such-bucket'):
        open_shards(as_path('gs://no-such-bucket/x'))


def test_reads_of_shards_are_counted(folder):
    stream = BatchStream((WeightedSource('the source', open_shards(folder)),), load, 4)
    found = TrainBatches(None, [stream], None)
    assert found.shard_metrics()['shard_gigabytes'] == 0
    with contextlib.closing(load_mixed_batches([stream], CONFIG)) as drawn:
        list(itertools.islice(drawn, 24))
    metrics = found.shard_metrics()
    assert 0 < metrics['shard_hit_rate'] < 1 and metrics['shard_wait_seconds'] > 0
    assert metrics['shard_gigabytes'] * GB == pytest.approx(SHARDS * shard_bytes(folder), rel=0.01)
    assert TrainBatches(None, [BatchStream((WeightedSource('x', [{'i': 1}]),), load, 1)], None).shard_metrics() == {}
