"""Clips of photographs in motion."""

import cv2
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.synthetic import moving_images
from fv_jax.data.synthetic.moving_images import MovingImages, move_camera
from fv_jax.evaluation import full_reference

SIZE = (9, 24, 32)


def texture(height=160, width=200):
    noise = np.random.default_rng(0).random((height, width, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, None, 3)
    return np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def test_moving_images_are_a_function_of_the_index():
    source = MovingImages([{'video': texture()[None], 'source': 'a.jpg'}], SIZE)
    assert len(source) == moving_images.VARIANTS
    records = [source[i] for i in (0, 1, 0)]
    assert all(record['video'].shape == (*SIZE, 3) and record['video'].dtype == np.uint8 for record in records)
    np.testing.assert_array_equal(records[0]['video'], records[2]['video'])
    assert np.abs(records[0]['video'].astype(int) - records[1]['video']).mean() > 5


def test_a_number_of_moving_clips_may_be_given():
    config = DataConfig(LoaderConfig(1), train='moving:3:embedded', heldout='', frames=9, height=24, width=32)
    three = pipeline.open_source(config.train, config, heldout=False)
    every = pipeline.open_source('moving:embedded', config, heldout=False)
    assert (len(three), len(every)) == (
        3,
        moving_images.VARIANTS * len(pipeline.open_source('embedded', config, heldout=False)),
    )
    np.testing.assert_array_equal(three[2]['video'], every[2]['video'])
    with pytest.raises(ConfigError, match='0 moving clips: must be at least 1'):
        pipeline.open_source('moving:0:embedded', config, heldout=False)


def test_a_camera_that_does_not_move_shows_a_part_of_the_image(monkeypatch):
    """All frames are the same pixels, of an image at its own scale."""
    monkeypatch.setattr(moving_images, 'SPEED', (1e-9, 2e-9))
    monkeypatch.setattr(moving_images, 'ZOOM', 0.0)
    monkeypatch.setattr(moving_images, 'TURN', 0.0)
    image = np.full((160, 200, 3), (10, 120, 250), np.uint8)
    assert np.unique(move_camera(image, SIZE, np.random.default_rng(0)).reshape(-1, 3), axis=0).tolist() == [
        [10, 120, 250]
    ]
    clip = move_camera(texture(), SIZE, np.random.default_rng(0))
    assert np.ptp(clip.astype(int), axis=0).max() == 0 and clip.std() > 20


def test_a_pan_moves_every_frame_by_the_same_fraction_of_a_pixel(monkeypatch):
    """The mean of frames of a ramp, of 255 levels on 400 pixels, changes linearly, to the rounding of the ramp."""
    monkeypatch.setattr(moving_images, 'SPEED', (0.03, 0.04))
    monkeypatch.setattr(moving_images, 'ZOOM', 0.0)
    monkeypatch.setattr(moving_images, 'TURN', 0.0)
    ramp = np.broadcast_to(np.rint(np.arange(400) / 400 * 255).astype(np.uint8)[:, None], (400, 400, 3))
    clip = move_camera(ramp, SIZE, np.random.default_rng(1)).astype(float)
    means, times = clip.mean(axis=(1, 2, 3)), np.arange(SIZE[0])
    line = np.polyfit(times, means, 1)
    assert abs(line[0]) > 1 and np.abs(means - np.polyval(line, times)).max() < 0.5


def test_frames_of_a_clip_resemble_their_neighbours():
    clip = move_camera(texture(400, 500), SIZE, np.random.default_rng(1)).astype(np.float32) / 127.5 - 1
    near, far = (full_reference.psnr(clip[k:], clip[:-k]).mean() for k in (1, 8))
    assert near > far


def test_a_small_image_is_refused_with_the_limit():
    with pytest.raises(ValueError, match=r'a.jpg: 40x50: too small for moving clips of 24x32; .* at least 47'):
        move_camera(np.zeros((40, 50, 3), np.uint8), SIZE, np.random.default_rng(0), 'a.jpg')
