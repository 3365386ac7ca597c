"""From a data configuration to batches."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from fv_jax.core.config import ConfigError, build
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data import embedded, pipeline
from fv_jax.data.buckets import Bucket
from fv_jax.data.config import DataConfig, LatentCacheConfig
from fv_jax.data.degradation.configs import WeakConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.transforms import to_float
from fv_jax.data.video import encoding
from fv_jax.models.vae import OFFICIAL
from tests.data import sample_videos

SPEC = OFFICIAL.latent_spec
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
    bad = BadRecords(config.bad_records)
    groups = pipeline.group_by_bucket(pipeline.training_sources(config, bad), config, SPEC)
    drawn = pipeline.make_streams(groups, config, low_res=True)
    found = pipeline.train_batches(drawn, config, bad, start_step=start_step, process=process)
    return [next(found) for _ in range(count)]


def test_synthetic_clips_move_and_differ():
    clips = [record['video'] for record in pipeline.synthetic_clips(3, 5, 16, 32)]
    assert {clip.shape for clip in clips} == {(5, 16, 32, 3)} and {clip.dtype for clip in clips} == {np.dtype('uint8')}
    assert np.abs(clips[0].astype(float) - clips[1]).mean() > 10
    assert all(np.abs(np.diff(clip.astype(float), axis=0)).mean() > 1 for clip in clips)


def test_train_batches():
    (first, second) = first_batches(SMALL)
    for batch in (first, second):
        assert batch.keys() == {'high_res_BFHWC', 'low_res_BFHWC'}
        for video in batch.values():
            assert video.shape == (2, 9, 32, 48, 3) and video.dtype == np.float32 and np.abs(video).max() <= 1
        # The degraded clip has less detail.
        difference = np.abs(batch['high_res_BFHWC'] - batch['low_res_BFHWC']).mean()
        assert 0.01 < difference < 0.3
    assert not np.array_equal(first['high_res_BFHWC'], second['high_res_BFHWC'])


def test_train_batches_resume_at_any_step():
    *_, third = first_batches(SMALL, count=3)
    (again,) = first_batches(SMALL, start_step=2, count=1)
    for name in third:
        np.testing.assert_array_equal(again[name], third[name])


def test_train_batches_are_split_over_processes():
    (whole,) = first_batches(SMALL, count=1)
    parts = [first_batches(SMALL, count=1, process=(i, 2))[0] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([p['low_res_BFHWC'] for p in parts]), whole['low_res_BFHWC'])


def test_heldout_clips_are_the_same_every_time():
    records = pipeline.open_source('synthetic', SMALL, heldout=True)
    transform = pipeline.clip_transform(SMALL, low_res=True, training=False)
    first, again = (pipeline.heldout_clips(records, transform, SMALL) for _ in range(2))
    assert len(first) == 3
    for a, b in zip(first, again, strict=True):
        assert a['high_res_BFHWC'].shape == (1, 1, 16, 32, 3)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert len({batch['high_res_BFHWC'].tobytes() for batch in first}) == 3


def test_heldout_clips_are_centre_crops_without_flips():
    config = dataclasses.replace(SMALL, fit='crop', heldout_size=(1, 16, 16))
    video = np.zeros((3, 20, 24, 3), np.uint8)
    middle = np.arange(256, dtype=np.uint8).reshape(16, 16)
    video[1, 2:18, 4:20] = middle[..., None]
    transform = pipeline.clip_transform(config, low_res=False, training=False)
    for seed in range(4):
        got = transform({'video': video}, np.random.default_rng(seed))['high_res_FHWC']
        np.testing.assert_allclose(got[0, ..., 0], middle * (2 / 255) - 1, atol=1e-6)


def test_heldout_clips_fewer_than_requested():
    config = dataclasses.replace(SMALL, eval_clips=9)
    records = pipeline.synthetic_clips(2, 1, 16, 32)
    transform = pipeline.clip_transform(config, low_res=False, training=False)
    assert len(pipeline.heldout_clips(records, transform, config)) == 2


def test_heldout_clip_is_loaded_once_and_equal_in_every_batch():
    reads = []

    class Records:
        def __getitem__(self, index):
            reads.append(index)
            return {'value': np.float32(index)}

    def transform(record, rng):
        return {'x_D': record['value'] + np.float32(rng.uniform(0, 0.5, 2))}

    batch = pipeline.load_heldout(Records(), transform, np.array([2, 1, 2]))
    assert sorted(reads) == [1, 2] and batch['x_BD'].shape == (3, 2)
    np.testing.assert_array_equal(batch['x_BD'][0], batch['x_BD'][2])
    np.testing.assert_array_equal(
        pipeline.load_heldout(Records(), transform, np.array([1]))['x_BD'][0], batch['x_BD'][1]
    )


def test_pipeline_sources(tmp_path):
    assert len(pipeline.open_source('embedded', SMALL, heldout=False)) == 66
    assert len(pipeline.open_source('embedded', SMALL, heldout=True)) == 8 and embedded.heldout_shards()
    assert len(pipeline.open_source('synthetic', SMALL, heldout=True)) == 3
    with RecordWriter(tmp_path / 'clips', 'clips') as writer:
        writer.write({'video': np.full((9, 32, 48, 3), 7, np.uint8), 'caption': 'grey'})
    records = pipeline.open_source(str(tmp_path / 'clips'), SMALL, heldout=False)
    assert len(records) == 1 and records[0]['video'].max() == 7
    with pytest.raises(ValueError, match='no such folder'):
        pipeline.open_source(str(tmp_path / 'none'), SMALL, heldout=False)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty: holds no'):
        pipeline.open_source(str(tmp_path / 'empty'), SMALL, heldout=True)


def test_sources_in_folders_of_any_name(tmp_path, monkeypatch):
    """With + and @ in quotes, alone, joined and weighted; with ~; with a colon."""
    monkeypatch.setenv('HOME', str(tmp_path))
    for i, name in enumerate(('a+b@2', 'exp:1')):
        with RecordWriter(tmp_path / name, 'clips') as writer:
            writer.write({'video': np.full((9, 32, 48, 3), i, np.uint8)})
    (tmp_path / 'me@home').mkdir()
    Image.new('RGB', (48, 32)).save(tmp_path / 'me@home' / 'a.png')
    for names, sizes in (
        ('"~/a+b@2"', [1]),
        ('~/exp:1', [1]),
        (f'"{tmp_path}/a+b@2"+~/exp:1+stills:"~/a+b@2"', [3]),
        ('"~/a+b@2"@3+images:"~/me@home"@1', [1, 1]),
    ):
        config = dataclasses.replace(SMALL, train=names)
        assert [len(part) for part in pipeline.training_sources(config, BadRecords(config.bad_records))] == sizes
    for kind in ('images:', 'tfds:'):
        with pytest.raises(ValueError, match=r'ftp://b: the scheme ftp:// is not supported; use a local path'):
            pipeline.open_source(f'{kind}ftp://b', SMALL, heldout=False)
    with pytest.raises(ConfigError, match=r'^train: .* has more than one @'):
        dataclasses.replace(SMALL, train='a@b@1')


def test_in_memory_source_equals_shards(tmp_path):
    source_video = sample_videos.pattern(9, 32, 48)
    with RecordWriter(tmp_path, 'clips') as writer:
        writer.write({'video': encoding.encode_bytes(source_video, 24)})
        writer.write({'video': source_video[::-1].copy()})
    on_disk = dataclasses.replace(SMALL, train=str(tmp_path))
    for a, b in zip(first_batches(on_disk), first_batches(dataclasses.replace(on_disk, in_memory=True)), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ('field', 'words'),
    [
        ({'height': 40}, '^config.data.height=40: must be a multiple of 16; use 32 or 48'),
        ({'width': 8}, '^config.data.width=8: must be a multiple of 16; use 16'),
        ({'frames': 10}, '^config.data.frames=10: .*8k[+]1.*9 or 17'),
        ({'heldout_size': (2, 16, 16)}, r'^config.data.heldout_size\[0\]=2'),
        ({'heldout_size': (9, 16, 17)}, r'^config.data.heldout_size\[2\]=17: must be a multiple of 16'),
        ({'buckets': (Bucket(9, 16, 16), Bucket(9, 60, 64))}, r'^config.data.buckets\[1\].height=60: .* use 48 or 64'),
        ({'buckets': (Bucket(16, 64, 64),)}, r'^config.data.buckets\[0\].frames=16'),
    ],
)
def test_data_config_refuses_sizes_that_the_vae_cannot_take(field, words):
    SMALL.check_sizes(SPEC)
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **field).check_sizes(SPEC)


def test_data_config_valid_sizes_depend_on_the_vae():
    """With 4 frames of 16x16 pixels to a latent, sides must be multiples of 32."""
    wide = LatentSpec(48, 4, 16)
    dataclasses.replace(SMALL, height=32, width=64, heldout_size=None).check_sizes(wide)
    with pytest.raises(ConfigError, match='width=48: must be a multiple of 32; use 32 or 64'):
        SMALL.check_sizes(wide)
    config = dataclasses.replace(SMALL, token_budget=30)
    assert config.batch_size(Bucket(9, 32, 64), SPEC) == 1 and config.batch_size(Bucket(9, 32, 64), wide) == 5


def test_data_config_refuses_invalid_values():
    with pytest.raises(ConfigError, match='eval_clips=0: must be at least 1'):
        dataclasses.replace(SMALL, eval_clips=0)


def test_pipeline_refuses_sources_that_do_not_match_the_config():
    with pytest.raises(ConfigError, match='num_degraded_variants=-1'):
        LatentCacheConfig(num_degraded_variants=-1)
    with pytest.raises(ConfigError, match='fit'):
        build(DataConfig, {'loader': {'batch_size': 1}, 'fit': 'stretch'})


def test_buckets_train_clips_at_their_sizes(tmp_path, log_lines):
    with RecordWriter(tmp_path / 'clips', 'clips') as writer:
        for size in [(9, 32, 48)] * 3 + [(17, 64, 64), (9, 40, 32), (5, 64, 64)]:
            writer.write({'video': np.full((*size, 3), size[0], np.uint8), 'caption': 'grey'})
    for i in range(4):
        Image.fromarray(np.full((40, 60, 3), 200 + i, np.uint8)).save(tmp_path / f'{i}.png')
    (tmp_path / '0.txt').write_text('an image')
    buckets = (Bucket(9, 32, 48), Bucket(1, 32, 48), Bucket(9, 16, 16), Bucket(17, 64, 64), Bucket(33, 16, 16))
    config = dataclasses.replace(
        SMALL, train=f'{tmp_path}/clips@3+images:{tmp_path}@1', buckets=buckets, token_budget=72, flip=False
    )
    bad = BadRecords(config.bad_records)
    groups = pipeline.group_by_bucket(pipeline.training_sources(config, bad), config, SPEC)
    assert [str(group.bucket) for group in groups] == ['9x32x48', '1x32x48', '9x16x16', '17x64x64']
    assert [group.batch_size for group in groups] == [4, 12, 24, 1]
    assert log_lines[0] == f'skipped: 1 of 6 clips of {tmp_path}/clips: of fewer than 9 frames'
    assert log_lines[1].startswith('9x32x48: 3 clips, batch 4 (72 tokens), ') and log_lines[-1] == '33x16x16: no clips'
    # Rows, not batches, are 3 to 1: batches are weighted by how many rows they hold.
    rows = np.array([group.share * group.batch_size for group in groups])
    np.testing.assert_allclose(rows / rows.sum(), [3 / 4 * 3 / 5, 1 / 4, 3 / 4 / 5, 3 / 4 / 5])
    found = pipeline.train_batches(
        pipeline.make_streams(groups, config, low_res=True), config, bad, start_step=0, process=(0, 1)
    )
    shapes = {batch['low_res_BFHWC'].shape for batch in (next(found) for _ in range(30))}
    assert shapes <= {(4, 9, 32, 48, 3), (12, 1, 32, 48, 3), (24, 9, 16, 16, 3), (1, 17, 64, 64, 3)}
    assert len(shapes) >= 3  # the third is one step in 60


def test_source_without_fitting_clips_is_an_error_that_names_it(tmp_path):
    with RecordWriter(tmp_path, 'clips') as writer:
        writer.write({'video': np.zeros((9, 16, 16, 3), np.uint8)})
    config = dataclasses.replace(SMALL, train=str(tmp_path))
    with pytest.raises(ValueError, match=f'{tmp_path}: none of its 1 clips can be trained on: 1 smaller than 32x48'):
        first_batches(config)
    with pytest.raises(ConfigError, match='buckets: sprites has one size'):
        first_batches(dataclasses.replace(SMALL, train='sprites', buckets=(Bucket(9, 16, 16), Bucket(9, 16, 32))))


def test_shards_that_cannot_be_opened_are_skipped_and_counted(tmp_path):
    with RecordWriter(tmp_path, 'clips', shard_records=2) as writer:
        for i in range(4):
            writer.write({'video': np.full((9, 32, 48, 3), i, np.uint8)})
    (first, second) = writer.shards
    first.write_bytes(first.read_bytes()[:-100])
    config = dataclasses.replace(SMALL, train=str(tmp_path))
    with pytest.raises(ValueError, match=f'{first}: cut off'):
        first_batches(config)
    skip = dataclasses.replace(config, bad_records=BadRecordConfig('skip'))
    for batch in first_batches(skip):
        assert set(np.unique(batch['high_res_BFHWC'])) <= set(to_float(np.array([2, 3], np.uint8)))
    second.write_bytes(b'nothing')
    with pytest.raises(ValueError, match=f'{tmp_path}: none of its 2 shards can be opened'):
        first_batches(skip)
