"""A folder of videos as a TFDS data set, without TensorFlow."""

import dataclasses
import sys

import numpy as np
import pytest

from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.shards.tfds_builder import Examples, VideoFolder
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.models.vae import OFFICIAL
from tests.data import sample_videos


def test_tfds_builder_makes_examples_and_batches(tmp_path):
    (tmp_path / 'in').mkdir()
    sample_videos.write_two_shots(tmp_path / 'in' / 'a.mp4')
    (tmp_path / 'in' / 'a.txt').write_text('two patterns')
    sample_videos.write_two_shots(tmp_path / 'in' / 'b.mp4')
    (tmp_path / 'in' / 'c.mp4').write_bytes(b'not a video')
    config = ClipsConfig(frames=9, height=64, width=96, preset='ultrafast')
    builder = VideoFolder(tmp_path / 'in', config, data_dir=tmp_path / 'out')
    builder.download_and_prepare()
    assert builder.skipped.keys() == {'c.mp4'} and 'not a video' in builder.skipped['c.mp4']
    folder = tmp_path / 'out' / 'video_folder' / '1.0.0'
    examples = Examples(str(folder))
    assert len(examples) == 8 and (examples.sizes().to_array() == [9, 64, 96]).all()
    captions = [examples[i].get('caption') for i in range(8)]
    assert captions.count('two patterns') == 4 and captions.count(None) == 4
    assert {examples[i]['source'] for i in range(8)} == {'a.mp4', 'b.mp4'}

    data = DataConfig(LoaderConfig(batch_size=2, num_threads=0), train=f'tfds:{folder}', frames=9, height=64, width=96)
    bad = BadRecords(data.bad_records)
    groups = pipeline.group_by_bucket(pipeline.training_sources(data, bad), data, OFFICIAL.latent_spec)
    drawn = pipeline.make_streams(groups, data, low_res=True)
    batch = next(pipeline.train_batches(drawn, data, bad, start_step=0, process=(0, 1)))
    assert batch['low_res_BFHWC'].shape == (2, 9, 64, 96, 3) and np.isfinite(batch['low_res_BFHWC']).all()
    assert 'tensorflow' not in sys.modules
    with pytest.raises(ValueError, match=f'{tmp_path}: not a TFDS data set'):
        pipeline.open_source(f'tfds:{tmp_path}', dataclasses.replace(data, train='x'), heldout=False)
