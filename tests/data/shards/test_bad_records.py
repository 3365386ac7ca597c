"""Records that cannot be used: counted, named, replaced; or the run stops."""

import itertools

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data.loader import BatchStream, LoaderConfig, WeightedSource, check_streams, load_mixed_batches
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecordError, BadRecords

BAD = {3, 7}


class DamagedSource:
    """A source some of whose records cannot be read."""

    def __init__(self, count: int = 12, bad=BAD):
        self._count, self._bad = count, bad

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        if index in self._bad:
            raise ValueError(f'the source, record {index}: damaged: of no use')
        return {'i': index}

    def record_name(self, index: int) -> str:
        return f'the source, record {index}'


def draw(record: dict, rng: np.random.Generator) -> dict:
    return {'i': np.array([[record['i']]]), 'noise': rng.normal(size=(1, 1))}


def stream(source=None, **fields) -> BatchStream:
    return BatchStream((WeightedSource('the source', source or DamagedSource()),), draw, 4, **fields)


def run(bad: BadRecords, count: int = 12, process=(0, 1), threads: int = 2, streams=None) -> list[dict]:
    config = LoaderConfig(4, seed=1, num_threads=threads)
    return list(itertools.islice(load_mixed_batches(streams or [stream()], config, process=process, bad=bad), count))


def test_bad_records_are_counted_logged_once_and_replaced(log_lines: list[str]) -> None:
    bad = BadRecords(BadRecordConfig('skip', max_bad_records=2))
    drawn = np.concatenate([batch['i'].ravel() for batch in run(bad)])
    assert not BAD & set(drawn.tolist()) and len(drawn) == 48
    assert bad.found == {f'the source, record {i}': 'damaged: of no use' for i in BAD}
    assert len(log_lines) == 2 and log_lines[0].startswith('bad record 1 of at most 2: the source, record ')


def test_bad_record_replacement_does_not_depend_on_processes_or_threads() -> None:
    skip = BadRecordConfig('skip', max_bad_records=2)
    alone = run(BadRecords(skip), threads=0)
    parts = [run(BadRecords(skip), process=(p, 2), threads=5) for p in (0, 1)]
    for whole, first, second in zip(alone, *parts, strict=True):
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([first[name], second[name]]))


def test_bad_records_above_the_limit_stop_the_run() -> None:
    bad = BadRecords(BadRecordConfig('skip', max_bad_records=1))
    with pytest.raises(
        BadRecordError, match=r'2 records are bad and .*max_bad_records=1; the last is the source, record [37]'
    ):
        run(bad)


def test_bad_record_policy_fail_raises_at_the_first() -> None:
    with pytest.raises(BadRecordError, match=r'the source, record [37]: damaged: of no use; .*on_bad_record=skip'):
        run(BadRecords(BadRecordConfig('fail')))


def test_source_of_bad_records_only_is_an_error() -> None:
    nothing = stream(DamagedSource(bad=range(12)))
    with pytest.raises(
        BadRecordError, match='the source: none of its first 12 records can be used; the source, record 11'
    ):
        check_streams([stream(), nothing])
    check_streams([stream()])
    with pytest.raises(BadRecordError, match='the source: 16 consecutive records are bad'):
        run(BadRecords(BadRecordConfig('skip', max_bad_records=100)), streams=[nothing])


@pytest.mark.parametrize('fault', [RuntimeError('a bug'), SystemExit(3), MemoryError()])
@pytest.mark.parametrize('threads', [0, 3])
def test_dead_worker_stops_the_run(fault: BaseException, threads: int) -> None:
    """Errors other than those of records are never skipped, and no thread waits for a dead one."""

    def die(record: dict, rng: np.random.Generator) -> dict:
        if record['i'] == 5:
            raise fault
        return draw(record, rng)

    here = BatchStream((WeightedSource('the source', DamagedSource(bad=())),), die, 4)
    with pytest.raises(type(fault)):
        run(BadRecords(BadRecordConfig('skip')), threads=threads, streams=[here])


def test_bad_record_config_refuses_invalid_policies() -> None:
    with pytest.raises(ConfigError, match='on_bad_record=ignore: must be one of skip, fail'):
        BadRecordConfig('ignore')
    with pytest.raises(ConfigError, match='max_bad_records=-1'):
        BadRecordConfig(max_bad_records=-1)
