from pathlib import Path

import numpy as np
import pytest

from configs import prepare
from fv_jax.data import embedded
from fv_jax.data.shards import shard_files
from fv_jax.data.shards.records import Record
from fv_jax.data.video import decoding


@pytest.fixture(scope='module')
def clips() -> dict[str, list[Record]]:
    return {
        'train': list(shard_files.read_records(embedded.train_shards())),
        'heldout': list(shard_files.read_records(embedded.heldout_shards())),
    }


def test_embedded_clips_are_those_of_the_config(clips: dict) -> None:
    for split, starts, frames in (
        ('train', prepare.TRAIN_STARTS, prepare.TRAIN_FRAMES),
        ('heldout', tuple(prepare.HELDOUT_STARTS), prepare.HELDOUT_FRAMES),
    ):
        assert tuple(record['start_frame'] for record in clips[split]) == starts
        for record in clips[split]:
            shape = record['frames'], record['height'], record['width'], record['fps']
            assert shape == (frames, 256, 480, 24.0)


def test_embedded_heldout_shots_differ_from_training_shots(clips: dict) -> None:
    train = np.array(prepare.TRAIN_STARTS)
    for start in prepare.HELDOUT_STARTS:
        before, after = train + prepare.TRAIN_FRAMES, start + prepare.HELDOUT_FRAMES
        gaps = np.maximum(start - before, train - after)
        assert gaps.min() >= 48, f'frame {start} is {gaps.min()} frames from a training clip'  # 2 seconds


def test_embedded_clips_have_detail_and_motion_without_cuts(clips: dict) -> None:
    for split, step in (('train', 9), ('heldout', 1)):
        for record in clips[split][::step]:
            frames = decoding.decode(record['video']).frames
            assert frames.shape == (record['frames'], 256, 480, 3)
            grey = frames.astype(np.float32).mean(axis=-1)
            assert 15 < grey.mean() < 230 and np.abs(np.diff(grey, axis=2)).mean() > 1
            assert np.abs(np.diff(grey, axis=0)).mean() > 0.1
            first_half, second_half = grey[: len(grey) // 2].mean(axis=0), grey[len(grey) // 2 :].mean(axis=0)
            assert np.corrcoef(first_half.ravel(), second_half.ravel())[0, 1] > 0.1


def test_embedded_clips_are_small_and_attributed() -> None:
    files = list(Path(embedded.__file__).parent.glob('*'))
    assert sum(path.stat().st_size for path in files if path.is_file()) < 4_200_000
    notice = (Path(embedded.__file__).parent / 'NOTICE').read_text(encoding='utf-8')
    assert 'Blender Foundation' in notice and 'creativecommons.org/licenses/by/3.0' in notice
