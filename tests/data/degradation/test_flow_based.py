"""Flow-based degradation: of clips whose motion is known."""

import dataclasses

import cv2
import numpy as np
import pytest

from configs import degradations as published
from fv_jax.core.config import ConfigError, build
from fv_jax.data.degradation import degradations
from fv_jax.data.degradation.configs import FlowBasedConfig, WeakConfig
from fv_jax.data.degradation.flow_based import Ellipse, MotionDegradation, follow, sample_motion
from fv_jax.data.transforms import to_float

CONFIG = build(FlowBasedConfig, published.flow_based())
PAN = 4  # pixels a frame
MIDDLE = ((2 * 128 + 64) * 192 + 96.5) / (5 * 128 * 192)  # of the moving pixels of `pan`: (64, 96) in frame 3
COLORS = MotionDegradation(0.5, (Ellipse(MIDDLE, 0.3, 0.2),), 0.0, 0.004)
BLUR = MotionDegradation(0.0, (), 1.0, 0.004)


def texture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.rint((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype(np.uint8)


def pan(frames: int = 6, height: int = 128, width: int = 192) -> np.ndarray:
    """A view that moves to the right over a texture, which moves to the left: x_t(p) = texture(p + t PAN)."""
    wide = texture(height, width + PAN * frames)
    return to_float(np.stack([wide[:, PAN * t : PAN * t + width] for t in range(frames)]))


def moving_square(frames: int = 6) -> np.ndarray:
    """A textured square of 48 pixels that moves down in front of a background that does not."""
    clip = np.repeat(texture(192, 256)[None], frames, axis=0)
    square = 255 - texture(48, 48)
    for t, frame in enumerate(clip):
        frame[40 + PAN * t : 88 + PAN * t, 40:88] = square
    return to_float(clip)


@pytest.mark.parametrize('seed', range(3))
def test_flow_based_degradation_leaves_still_clips_and_images(seed: int) -> None:
    motion = sample_motion(np.random.default_rng(seed), CONFIG)
    still = np.repeat(pan(1), 4, axis=0)
    np.testing.assert_array_equal(motion(still), still)
    np.testing.assert_array_equal(motion(pan(1)), pan(1))
    small = pan(3, 12, 192)  # of fewer rows than the optical flow can take
    np.testing.assert_array_equal(motion(small), small)


def test_flow_based_degradation_leaves_what_does_not_move() -> None:
    clip = moving_square()
    degraded = MotionDegradation(0.5, (Ellipse(0.5, 9, 9),), 1.0, 0.004)(clip)
    away = np.ones(clip.shape[1:3], bool)
    away[20:130, 20:110] = False  # the square, and where the optical flow around it is not sharp
    np.testing.assert_array_equal(degraded[:, away], clip[:, away])
    assert np.abs(degraded - clip)[1:, 60:80, 50:78].mean() > 0.05


def test_flow_based_colors_are_those_of_the_frame_before_and_follow_a_pan() -> None:
    clip = pan()
    degraded = COLORS(clip)
    np.testing.assert_array_equal(degraded[0], clip[0])
    centres = []
    for t in range(1, len(clip)):
        before, now, out = clip[t - 1], clip[t], degraded[t]
        # Of x + share (before - x): the share by least squares at every pixel, from its three colours.
        share = ((out - now) * (before - now)).sum(-1) / np.maximum(((before - now) ** 2).sum(-1), 1e-6)
        contrast = ((before - now) ** 2).sum(-1) > 0.05
        assert share[contrast].min() > -1e-3 and 0.49 < share[contrast].max() < 0.501
        np.testing.assert_allclose(now + share[..., None] * (before - now), out, atol=2e-3)
        weights = np.where(contrast, share, 0)
        rows, columns = np.mgrid[: clip.shape[1], : clip.shape[2]]
        centres.append([(weights * at).sum() / weights.sum() for at in (rows, columns)])
    centres = np.array(centres)
    np.testing.assert_allclose(np.diff(centres[:, 1]), -PAN, atol=0.8)  # with the texture
    np.testing.assert_allclose(np.diff(centres[:, 0]), 0, atol=0.8)


def test_flow_based_blur_is_the_mean_along_a_pan() -> None:
    clip = pan()
    blurred = BLUR(clip)[:, :, 16:-16]
    kernel = np.array([0.5, 1, 1, 1, 0.5], np.float32) / 4  # of a motion by four pixels
    along = np.stack([cv2.sepFilter2D(frame, -1, kernel, np.ones(1, np.float32)) for frame in clip])[:, :, 16:-16]
    across = np.stack([cv2.sepFilter2D(frame, -1, np.ones(1, np.float32), kernel) for frame in clip])[:, :, 16:-16]
    sharp = clip[:, :, 16:-16]
    assert np.abs(blurred - along).mean() < 0.25 * np.abs(blurred - sharp).mean()
    assert np.abs(blurred - across).mean() > 3 * np.abs(blurred - along).mean()


def test_follow_integrates_the_flow() -> None:
    flows = np.zeros((5, 40, 60, 2), np.float32)
    flows[..., 0], flows[..., 1] = -2, 1  # to the frame before: things move right by 2 and up by 1
    assert follow(flows, 2, (30.0, 20.0)) == [(26.0, 22.0), (28.0, 21.0), (30.0, 20.0), (32.0, 19.0), (34.0, 18.0)]
    assert follow(flows, 0, (58.0, 1.0))[-1] == (59.0, 0.0)  # stays within the frame


def test_flow_based_degradation_is_a_function_of_the_generator_and_of_no_threads() -> None:
    clip, factor = pan(), WeakConfig(2, 4)
    kept, before, found = clip.copy(), cv2.getNumThreads(), []
    try:
        for seed, threads in ((1, 1), (1, 4), (2, 1)):
            cv2.setNumThreads(threads)
            rng = np.random.default_rng(seed)
            found.append(degradations.degrade_flow_based(clip, rng, CONFIG, factor))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(clip, kept)
    assert np.abs(found[0] - found[2]).mean() > 1e-3
    assert found[0].dtype == np.float32 and found[0].shape == clip.shape and np.abs(found[0]).max() <= 1 + 1e-6


def test_flow_based_degradation_ends_as_the_weak_one() -> None:
    still = np.repeat(pan(1), 4, axis=0)
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    sample_motion(same, CONFIG)
    degraded = degradations.degrade_flow_based(still, rng, CONFIG, WeakConfig(2, 4))
    np.testing.assert_array_equal(degraded, degradations.degrade_weak(still, same, WeakConfig(2, 4)))


@pytest.mark.parametrize(
    ('field', 'value'), [('blending', (0.2, 1.5)), ('ellipses', (4, 1)), ('radius', (0.0, 0.1)), ('threshold', 0.0)]
)
def test_flow_based_degradation_refuses_invalid_ranges(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf'{field}=.*: must be from'):
        dataclasses.replace(CONFIG, **{field: value})
