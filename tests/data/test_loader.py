import collections
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data import loader
from fv_jax.data.loader import BatchStream, LoaderConfig, WeightedSource, load_batches, load_mixed_batches
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.records import Record
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards

RECORDS = 10  # 4 rows a batch do not divide it: every other epoch ends inside a batch
BATCH = 4


class InMemory:
    """A source that counts how often and from where it is read."""

    def __init__(self, count: int = RECORDS):
        self.reads: list[int] = []
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        self.reads.append(index)
        return {'i': index}


def draw(record: Record, rng: np.random.Generator) -> Record:
    return {'i': np.asarray(record['i']), 'noise_HW': rng.normal(size=(2, 3)).astype(np.float32)}


def take(count: int, source=None, *, start_step: int = 0, process_count: int = 1, **config) -> list[dict]:
    """`count` global batches, joined from the processes' parts."""
    config = LoaderConfig(**{'batch_size': BATCH, 'seed': 3, 'num_threads': 2, **config})
    parts = [
        itertools.islice(
            load_batches(
                source or InMemory(),
                draw,
                config,
                start_step=start_step,
                process_index=p,
                process_count=process_count,
            ),
            count,
        )
        for p in range(process_count)
    ]
    return [
        {key: np.concatenate([part[key] for part in together]) for key in together[0]}
        for together in zip(*parts, strict=True)
    ]


def assert_batches_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.fixture(scope='module')
def single_process_batches() -> list[dict]:
    return take(12)


@pytest.mark.parametrize('process_count', [2, 4])
def test_loader_batches_do_not_depend_on_the_number_of_processes(
    single_process_batches: list[dict], process_count: int
) -> None:
    assert_batches_equal(take(12, process_count=process_count), single_process_batches)


def test_loader_shuffles_every_record_once_per_epoch(single_process_batches: list[dict]) -> None:
    rows = np.concatenate([batch['i'] for batch in single_process_batches])[: 4 * RECORDS].reshape(4, RECORDS)
    for epoch in rows:
        assert sorted(epoch) == list(range(RECORDS))
    assert len({tuple(epoch) for epoch in rows}) == 4


def test_loader_resume_with_another_number_of_processes(single_process_batches: list[dict]) -> None:
    for step in (1, 3, 7):
        assert_batches_equal(take(5, start_step=step, process_count=2), single_process_batches[step : step + 5])


def test_loader_resume_reads_no_earlier_records() -> None:
    source = InMemory()
    iterator = load_batches(source, draw, LoaderConfig(BATCH, num_threads=0), start_step=10**12)
    next(iterator)
    assert len(source.reads) == BATCH


def test_loader_random_numbers_depend_on_the_example_alone(single_process_batches: list[dict]) -> None:
    noise = np.concatenate([batch['noise_BHW'] for batch in single_process_batches]).reshape(-1, 6)
    assert len(np.unique(noise, axis=0)) == len(noise)  # also the same record in another epoch


def test_loader_order_depends_on_the_seed(single_process_batches: list[dict]) -> None:
    here = np.concatenate([batch['i'] for batch in single_process_batches])
    other = take(12, seed=4)
    there = np.concatenate([batch['i'] for batch in other])
    assert (here != there).any() and not np.array_equal(other[0]['noise_BHW'], single_process_batches[0]['noise_BHW'])
    # Grain numbers epochs by adding to the seed: seed 4 must not be seed 3 an epoch later.
    assert (here[RECORDS:] != there[:-RECORDS]).any()


@pytest.mark.parametrize('num_threads', [0, 1, 8])
def test_loader_batches_do_not_depend_on_threads(single_process_batches: list[dict], num_threads: int) -> None:
    assert_batches_equal(take(6, num_threads=num_threads), single_process_batches[:6])


def test_loader_prefetching_is_bounded() -> None:
    source = InMemory(1000)
    config = LoaderConfig(BATCH, num_threads=3, prefetch_batches=2)
    iterator = load_batches(source, draw, config)
    next(iterator)
    ready = threading.Event()
    ready.wait(0.3)  # long enough for an unbounded reader to have read everything
    assert len(source.reads) <= BATCH + 2 * BATCH + 3


def test_loader_refuses_invalid_batch_sizes_and_processes() -> None:
    with pytest.raises(ValueError, match=r'batch_size=6: does not divide over 4 processes; use 4 or 8'):
        load_batches(InMemory(), draw, LoaderConfig(6), process_count=4)
    with pytest.raises(ValueError, match='batch_size=3: does not divide over 4 processes; use 4'):
        load_batches(InMemory(), draw, LoaderConfig(3), process_count=4)
    with pytest.raises(ValueError, match='process_index=2: must be from 0 to 1'):
        load_batches(InMemory(), draw, LoaderConfig(4), process_index=2, process_count=2)
    with pytest.raises(ValueError, match='start_step=-1'):
        load_batches(InMemory(), draw, LoaderConfig(4), start_step=-1)
    with pytest.raises(ValueError, match='no records'):
        load_batches([], draw, LoaderConfig(4))
    with pytest.raises(ConfigError, match='batch_size=0'):
        LoaderConfig(0)


def test_loader_refuses_records_that_cannot_be_stacked() -> None:
    with pytest.raises(ValueError, match='some records have b and some do not'):
        loader.stack([{'a': np.zeros(2)}, {'a': np.zeros(2), 'b': np.zeros(2)}])
    with pytest.raises(ValueError, match=r'x_HW is float64\[2, 2\] in one record and float64\[2, 3\] in another'):
        loader.stack([{'x_HW': np.zeros((2, 2))}, {'x_HW': np.zeros((2, 3))}])
    assert loader.stack([{'x_FHWC': np.zeros((1, 2, 3, 4)), 'fps': 24.0}])['x_BFHWC'].shape == (1, 1, 2, 3, 4)


def tagged_records(tag: int, size: int):
    """A transform whose arrays tell the stream and are of its size."""

    def draw(record: Record, rng: np.random.Generator) -> Record:
        return {'i_L': np.full(size, record['i']), 'tag_L': np.full(size, tag), 'noise_L': rng.normal(size=size)}

    return draw


STREAMS = [
    BatchStream(
        (WeightedSource('a', InMemory(10)), WeightedSource('b', InMemory(1000), weight=3.0)),
        tagged_records(0, 2),
        4,
        share=2.0,
    ),
    BatchStream((WeightedSource('a', InMemory(10), indices=np.array([1, 4, 9])),), tagged_records(1, 3), 8, share=1.0),
    BatchStream((WeightedSource('c', InMemory(5)),), tagged_records(2, 5), 4, share=0.001),
]


def load_mixed(count: int, *, start_step: int = 0, process_count: int = 1, threads: int = 2) -> list[dict]:
    config = LoaderConfig(4, seed=3, num_threads=threads)
    parts = [
        itertools.islice(load_mixed_batches(STREAMS, config, start_step=start_step, process=(p, process_count)), count)
        for p in range(process_count)
    ]
    return [{k: np.concatenate([b[k] for b in together]) for k in together[0]} for together in zip(*parts, strict=True)]


@pytest.fixture(scope='module')
def count_sources() -> list[dict]:
    """The steps 0 ... 39, and 980 ... 1019, over the end of a cycle."""
    return load_mixed(40, threads=0) + load_mixed(40, start_step=980, threads=0)


@pytest.mark.parametrize('process_count', [2, 4])
def test_mixed_batches_do_not_depend_on_the_number_of_processes(count_sources: list[dict], process_count: int) -> None:
    assert_batches_equal(load_mixed(12, process_count=process_count), count_sources[:12])
    assert_batches_equal(load_mixed(12, process_count=process_count, start_step=995), count_sources[55:67])


def test_mixed_batches_have_one_shape_each_in_proportion(count_sources: list[dict]) -> None:
    tags = [int(batch['tag_BL'][0, 0]) for batch in count_sources]
    for batch, tag in zip(count_sources, tags, strict=True):
        assert (batch['tag_BL'] == tag).all() and batch['i_BL'].shape == ((4, 2), (8, 3), (4, 5))[tag]
    assert 40 < tags.count(0) < 67 and tags.count(1) > 13  # two to one


def test_mixed_batches_have_every_record_once_per_epoch(count_sources: list[dict]) -> None:
    rows = np.concatenate([batch['i_BL'][:, 0] for batch in count_sources[:40] if batch['tag_BL'][0, 0] == 1])
    epochs = rows[: len(rows) // 3 * 3].reshape(-1, 3)
    assert (np.sort(epochs, axis=1) == [1, 4, 9]).all() and len(np.unique(epochs, axis=0)) == 6
    noise = np.concatenate([batch['noise_BL'][:, 0] for batch in count_sources])
    assert len(np.unique(noise)) == len(noise)


def test_source_weights_are_fractions_of_examples() -> None:
    config = LoaderConfig(4, seed=0, num_threads=0)
    streams = [
        BatchStream(
            (WeightedSource('a', [{'i': 0}]), WeightedSource('b', [{'i': 1}] * 7, weight=3.0)), tagged_records(0, 2), 4
        )
    ]
    rows = np.concatenate([b['i_BL'][:, 0] for b in itertools.islice(load_mixed_batches(streams, config), 100)])
    assert rows.mean() == 0.75


def write(folder: Path, count: int, shard_records: int) -> list[str]:
    with RecordWriter(folder, 'clips', shard_records=shard_records) as writer:
        for i in range(count):
            writer.write({'i': i, 'x': np.random.default_rng(i).bytes(4000)})
    return list_shards(folder)


def test_shards_are_a_data_source(tmp_path: Path, single_process_batches: list[dict]) -> None:
    shards = Shards(write(tmp_path, RECORDS, shard_records=4))
    assert len(shards) == RECORDS and [shards[i]['i'] for i in range(RECORDS)] == list(range(RECORDS))
    assert_batches_equal(take(5, shards), single_process_batches[:5])


def test_damaged_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    paths = write(tmp_path, 40, shard_records=20)
    data = bytearray(Path(paths[1]).read_bytes())
    data[70_000:70_010] = bytes(10)
    Path(paths[1]).write_bytes(data)
    shards = Shards(paths)
    counts = collections.Counter()
    for i in range(40):
        try:
            counts['good'] += shards[i]['i'] == i
        except ValueError as error:
            counts['bad'] += 1
            assert f'clips-00001-of-00002.array_record, record {i - 20}: damaged' in str(error)
    assert counts == {'good': 39, 'bad': 1}
    with pytest.raises(ValueError, match=r'record 1.: damaged'):
        list(itertools.islice(load_batches(shards, draw, LoaderConfig(4)), 10))


def test_missing_or_truncated_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    paths = write(tmp_path, 40, shard_records=20)
    with pytest.raises(ValueError, match=r'x.array_record: no such shard'):
        Shards([*paths, tmp_path / 'x.array_record'])
    Path(paths[0]).write_bytes(Path(paths[0]).read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r'clips-00000-of-00002.array_record: cut off'):
        Shards(paths)
    with pytest.raises(ValueError, match='empty list of shards'):
        Shards([])
