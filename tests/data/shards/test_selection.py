"""Which records of prepared sets are trained on: filters and marks of duplicates, in the manifest and in the loader."""

import dataclasses

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.files import atomic_write
from fv_jax.data import pipeline, sources
from fv_jax.data.config import DataConfig
from fv_jax.data.curation.filters import Filter
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.shards import manifest
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.selection import DUPLICATE, KEPT, Selection
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards
from fv_jax.models.vae import OFFICIAL

SPEC = OFFICIAL.latent_spec
COLUMNS = {'sharpness': 'double', 'bandwidth': 'double', 'duplicate_of': 'int64'}


def write_set(folder, name, sharpness, duplicates, shard_records=2):
    """Writes a set of clips, each of one level, its number; the manifest has these scores."""
    with RecordWriter(folder, name, shard_records) as writer:
        for level in range(len(sharpness)):
            frames = np.full((9, 32, 48, 3), 10 + 5 * level, np.uint8)
            writer.write({'video': frames, 'fps': 24.0, 'frames': 9, 'height': 32, 'width': 48})
    path = folder / f'{name}.parquet'
    stated = manifest.read_manifest(path, name)
    with atomic_write(path) as temporary:
        changed = manifest.ManifestWriter(temporary, COLUMNS)
        ends = np.cumsum(stated.records)
        for end, count, size in zip(ends, stated.records, stated.bytes, strict=True):
            rows = slice(end - count, end)
            changed.add(
                int(size),
                {
                    **{key: [value] * count for key, value in zip(manifest.SIZE, (9, 32, 48), strict=True)},
                    'sharpness': sharpness[rows],
                    'duplicate_of': duplicates[rows],
                },
                stated.keys,
            )
        changed.close(name)


def choose(text, drop_duplicates=True):
    return Selection(Filter.parse(text), drop_duplicates)


def kept(source, selection):
    return np.flatnonzero(source.dropped(selection) == KEPT).tolist()


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path, 'clips', [10.0, 40.0, 50.0, None, 60.0], [None, 0, None, None, 0])
    return tmp_path


def test_filter_and_duplicates_select_records(folder):
    source = Shards(list_shards(folder))
    assert kept(source, choose('', False)) == [0, 1, 2, 3, 4]
    assert kept(source, choose('')) == [0, 2, 3]
    assert kept(source, choose('sharpness >= 30', False)) == [1, 2, 4]
    # The original is dropped by the filter, so that the first of its copies is kept.
    selection = choose('sharpness >= 30')
    assert source.dropped(selection).tolist() == [0, KEPT, KEPT, 0, 1]
    assert selection.reasons == ('not sharpness >= 30', DUPLICATE)


def test_totals_count_every_reason_from_one_reading(folder, monkeypatch):
    """As selections of one reason each do."""
    read, read_columns = [], manifest.Manifest.read_columns

    def record(self, columns):
        read.extend(columns)
        return read_columns(self, columns)

    monkeypatch.setattr(manifest.Manifest, 'read_columns', record)
    terms = ('sharpness >= 45', 'sharpness < 55')
    for shards in (list_shards(folder), list_shards(folder)[1:]):
        source = Shards(shards)
        read.clear()
        selected = source.select(choose(' and '.join(terms)))
        assert read == ['sharpness', 'duplicate_of']
        alone = [*(choose(term, False) for term in terms), choose('')]
        assert selected.totals.tolist() == [int((source.dropped(each) != KEPT).sum()) for each in alone]
        assert (selected.dropped == source.dropped(choose(' and '.join(terms)))).all()


def test_shards_that_are_not_opened_do_not_shift_the_scores(folder):
    source = Shards(list_shards(folder)[1:])  # records 2, 3 and 4
    assert kept(source, choose('sharpness >= 30')) == [0, 2]
    assert kept(source, choose('')) == [0, 1, 2]  # the original is not read


def test_marks_count_the_clips_of_all_sets_of_a_name(folder):
    write_set(folder, 'clips.1', [70.0, 80.0, 90.0], [2, None, 6])
    write_set(folder, 'other', [1.0, 2.0], [None, 0])
    source = Shards(list_shards(folder))
    names = [source.record_name(index).rsplit('/', 1)[1] for index in kept(source, choose(''))]
    assert names == [
        'clips-00000-of-00003.array_record, record 0',
        'clips-00001-of-00003.array_record, record 0',
        'clips-00001-of-00003.array_record, record 1',
        'clips.1-00000-of-00002.array_record, record 1',
        'other-00000-of-00001.array_record, record 0',
    ]
    alone = Shards(list_shards(folder, 'clips.1'))
    assert kept(alone, choose('')) == [0, 1, 2]


def test_filter_of_an_unknown_column_names_the_nearest(folder):
    with pytest.raises(ConfigError, match=r"'sharpnes'.*'sharpness'"):
        Shards(list_shards(folder)).dropped(choose('sharpnes > 3'))


def test_filter_needs_a_manifest_and_drops_nothing_without_one(folder):
    (folder / 'clips.parquet').unlink()
    source = Shards(list_shards(folder))
    assert kept(source, choose('')) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match='manifest'):
        source.dropped(choose('sharpness > 3'))


def test_sources_of_sources_select_as_their_parts(folder):
    shards = Shards(list_shards(folder))
    joined = sources.ConcatSource([pipeline.synthetic_clips(2, 9, 32, 48), shards])
    selection = choose('sharpness >= 30')
    assert sources.find_dropped(joined, selection).tolist() == [KEPT, KEPT, 0, KEPT, KEPT, 0, 1]
    for source in (sources.InMemory(shards), sources.PingPong(shards)):
        assert sources.find_dropped(source, selection).tolist() == [0, KEPT, KEPT, 0, 1]
    assert sources.find_dropped(pipeline.synthetic_clips(2, 9, 32, 48), selection) is None


def config(folder, **fields):
    loader = LoaderConfig(batch_size=2, num_threads=0)
    return DataConfig(loader, train=str(folder), frames=9, height=32, width=48, fit='crop', flip=False, **fields)


def levels(data, count=6, start_step=0, process=(0, 1)):
    """The levels of the clips of the first batches, which are their numbers."""
    bad = BadRecords(BadRecordConfig())
    groups = pipeline.group_by_bucket(pipeline.training_sources(data, bad), data, SPEC)
    streams = pipeline.make_streams(groups, data, low_res=False)
    batches = pipeline.train_batches(streams, data, bad, start_step=start_step, process=process)
    found = [next(batches)['high_res_BFHWC'][:, 0, 0, 0, 0] for _ in range(count)]
    return np.rint((np.array(found) + 1) * 127.5).astype(int) // 5 - 2


def test_loader_reads_what_is_kept_in_the_same_order_for_any_processes_and_any_start(folder, log_lines):
    data = config(folder, filter='sharpness >= 30')
    whole = levels(data)
    assert set(whole.ravel()) == {1, 2}
    assert 'sharpness >= 30' in ' '.join(log_lines) and DUPLICATE in ' '.join(log_lines)
    parts = [levels(data, process=(index, 2)) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(levels(data, count=2, start_step=4), whole[4:])
    assert set(levels(config(folder)).ravel()) == {0, 2, 3}
    assert set(levels(config(folder, drop_duplicates=False), 10).ravel()) == {0, 1, 2, 3, 4}


def test_filter_that_drops_all_clips_is_an_error_with_the_counts(folder):
    with pytest.raises(ValueError, match=r'5 not sharpness > 99'):
        levels(config(folder, filter='sharpness > 99'))


def test_configuration_refuses_an_invalid_filter(folder):
    with pytest.raises(ConfigError, match='filter: '):
        config(folder, filter='sharpness >')
    assert dataclasses.replace(config(folder), filter='').selection.is_empty is False
