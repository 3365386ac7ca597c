"""From a data configuration to batches."""

import dataclasses

import numpy as np
import pytest

from fv_jax.core.config import ConfigError, build
from fv_jax.data import embedded, pipeline, video_io
from fv_jax.data.degradations import WeakConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.pipeline import CacheConfig, DataConfig
from fv_jax.data.records import RecordWriter
from tests.data import films

SMALL = DataConfig(
    LoaderConfig(batch_size=2, num_threads=0),
    train='synthetic',
    heldout='synthetic',
    frames=9,
    height=32,
    width=48,
    eval_clips=3,
    heldout_size=(1, 16, 32),
    weak=WeakConfig(2.0, 4.0),
)


def first_batches(config, start_step=0, count=2, process=(0, 1)):
    records = pipeline.source(config.train, config, heldout=False)
    transform = pipeline.pixels(config, low_res=True, training=True)
    found = pipeline.train_batches(records, transform, config, start_step=start_step, process=process)
    return [next(found) for _ in range(count)]


def test_synthetic_clips_move_and_differ():
    clips = [record['video'] for record in pipeline.synthetic_clips(3, 5, 16, 32)]
    assert {clip.shape for clip in clips} == {(5, 16, 32, 3)} and {clip.dtype for clip in clips} == {np.dtype('uint8')}
    assert np.abs(clips[0].astype(float) - clips[1]).mean() > 10
    assert all(np.abs(np.diff(clip.astype(float), axis=0)).mean() > 1 for clip in clips)


def test_training_batches():
    (first, second) = first_batches(SMALL)
    for batch in (first, second):
        assert batch.keys() == {'high_res_BFHWC', 'low_res_BFHWC'}
        for video in batch.values():
            assert video.shape == (2, 9, 32, 48, 3) and video.dtype == np.float32 and np.abs(video).max() <= 1
        # The twin is the clip with less detail.
        difference = np.abs(batch['high_res_BFHWC'] - batch['low_res_BFHWC']).mean()
        assert 0.01 < difference < 0.3
    assert not np.array_equal(first['high_res_BFHWC'], second['high_res_BFHWC'])


def test_any_step_can_be_started_from():
    *_, third = first_batches(SMALL, count=3)
    (again,) = first_batches(SMALL, start_step=2, count=1)
    for name in third:
        np.testing.assert_array_equal(again[name], third[name])


def test_processes_share_the_global_batch():
    (whole,) = first_batches(SMALL, count=1)
    parts = [first_batches(SMALL, count=1, process=(i, 2))[0] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([p['low_res_BFHWC'] for p in parts]), whole['low_res_BFHWC'])


def test_heldout_batches_are_the_same_every_time():
    records = pipeline.source('synthetic', SMALL, heldout=True)
    transform = pipeline.pixels(SMALL, low_res=True, training=False)
    first, again = (pipeline.heldout_batches(records, transform, SMALL) for _ in range(2))
    assert len(first) == 3
    for a, b in zip(first, again, strict=True):
        assert a['high_res_BFHWC'].shape == (1, 1, 16, 32, 3)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert len({batch['high_res_BFHWC'].tobytes() for batch in first}) == 3


def test_the_middle_is_evaluated_and_never_mirrored():
    config = dataclasses.replace(SMALL, fit='crop', heldout_size=(1, 16, 16))
    video = np.zeros((3, 20, 24, 3), np.uint8)
    middle = np.arange(256, dtype=np.uint8).reshape(16, 16)
    video[1, 2:18, 4:20] = middle[..., None]
    transform = pipeline.pixels(config, low_res=False, training=False)
    for seed in range(4):
        got = transform({'video': video}, np.random.default_rng(seed))['high_res_FHWC']
        np.testing.assert_allclose(got[0, ..., 0], middle * (2 / 255) - 1, atol=1e-6)


def test_fewer_heldout_clips_than_asked_for():
    config = dataclasses.replace(SMALL, eval_clips=9)
    records = pipeline.synthetic_clips(2, 1, 16, 32)
    transform = pipeline.pixels(config, low_res=False, training=False)
    assert len(pipeline.heldout_batches(records, transform, config)) == 2


def test_sources(tmp_path):
    assert len(pipeline.source('embedded', SMALL, heldout=False)) == 66
    assert len(pipeline.source('embedded', SMALL, heldout=True)) == 8 and embedded.heldout_shards()
    assert len(pipeline.source('synthetic', SMALL, heldout=True)) == 3
    with RecordWriter(tmp_path / 'clips', 'clips') as writer:
        writer.write({'video': np.full((9, 32, 48, 3), 7, np.uint8), 'caption': 'grey'})
    records = pipeline.source(str(tmp_path / 'clips'), SMALL, heldout=False)
    assert len(records) == 1 and records[0]['video'].max() == 7
    with pytest.raises(ValueError, match='no such folder'):
        pipeline.source(str(tmp_path / 'none'), SMALL, heldout=False)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty: holds no'):
        pipeline.source(str(tmp_path / 'empty'), SMALL, heldout=True)


def test_clips_in_memory_are_those_on_disk(tmp_path):
    film = films.pattern(9, 32, 48)
    with RecordWriter(tmp_path, 'clips') as writer:
        writer.write({'video': video_io.encode_bytes(film, 24)})
        writer.write({'video': film[::-1].copy()})
    on_disk = dataclasses.replace(SMALL, train=str(tmp_path))
    for a, b in zip(first_batches(on_disk), first_batches(dataclasses.replace(on_disk, in_memory=True)), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ('field', 'words'),
    [
        ({'height': 40}, 'height=40: must be a multiple of 16; use 32 or 48'),
        ({'width': 8}, 'width=8: must be a multiple of 16; use 16'),
        ({'frames': 10}, 'frames=10: .*8k[+]1.*9 or 17'),
        ({'heldout_size': (2, 16, 16)}, r'heldout_size\[0\]=2'),
        ({'heldout_size': (9, 16, 17)}, r'heldout_size\[2\]=17: must be a multiple of 16'),
        ({'eval_clips': 0}, 'eval_clips=0: must be at least 1'),
    ],
)
def test_what_cannot_be_is_refused(field, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **field)


def test_a_cache_without_variants_is_refused():
    with pytest.raises(ConfigError, match='low_variants=0'):
        CacheConfig(low_variants=0)
    with pytest.raises(ConfigError, match='fit'):
        build(DataConfig, {'loader': {'batch_size': 1}, 'fit': 'stretch'})
