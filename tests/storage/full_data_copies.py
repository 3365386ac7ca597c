"""Data sources in object storage that are copied to the cache folder when they are opened."""

import numpy as np
import pytest
from PIL import Image

from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.shards.tfds_builder import VideoFolder
from fv_jax.data.video.clips import ClipsConfig
from tests.data import sample_videos

CONFIG = DataConfig(LoaderConfig(batch_size=1), frames=9, height=32, width=48)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The empty cache folder."""
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'cache'))


def upload(folder, bucket, prefix: str) -> None:
    for path in folder.rglob('*'):
        if path.is_file():
            bucket.write(f'{prefix}/{path.relative_to(folder).as_posix()}', path.read_bytes())


def test_images_with_captions_are_copied_once(bucket, tmp_path):
    local = tmp_path / 'photos'
    (local / 'more').mkdir(parents=True)
    for i, name in enumerate(('a.png', 'more/b.png')):
        Image.fromarray(np.full((20, 30, 3), 50 * i, np.uint8)).save(local / name)
    (local / 'a.txt').write_text('waves')
    upload(local, bucket, 'photos')
    expected = pipeline.open_source(f'images:{local}', CONFIG, heldout=False)
    for _ in range(2):
        found = pipeline.open_source(f'images:{bucket.url}/photos', CONFIG, heldout=False)
        assert len(found) == 2 and found[0]['caption'] == 'waves'
        assert found.sizes().to_array().tolist() == [[1, 20, 30]] * 2
        np.testing.assert_array_equal(found[1]['video'], expected[1]['video'])
        assert bucket.proxy.count('read') == 3  # of each file, once
    with pytest.raises(OSError, match=f'{bucket.url}/none'):
        pipeline.open_source(f'images:{bucket.url}/none', CONFIG, heldout=False)


def test_tfds_data_set_is_copied(gs_bucket, tmp_path):
    (tmp_path / 'videos').mkdir()
    sample_videos.write_two_shots(tmp_path / 'videos' / 'a.mp4')
    config = ClipsConfig(frames=9, height=64, width=96, preset='ultrafast')
    VideoFolder(tmp_path / 'videos', config, data_dir=tmp_path / 'data').download_and_prepare()
    upload(tmp_path / 'data', gs_bucket, 'tfds')
    local = pipeline.open_source(f'tfds:{tmp_path}/data/video_folder/1.0.0', CONFIG, heldout=False)
    found = pipeline.open_source(f'tfds:{gs_bucket.url}/tfds/video_folder/1.0.0', CONFIG, heldout=False)
    assert len(found) == len(local) > 0 and found[0]['video'] == local[0]['video']
