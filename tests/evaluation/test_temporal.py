"""Warping error and flicker of videos whose motion is known, and what is refused."""

import cv2
import numpy as np
import pytest

from fv_jax.evaluation import temporal
from fv_jax.evaluation.temporal import flicker, warping_error


def texture(height: int = 96, width: int = 160) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip(smooth / np.abs(smooth).max(), -1, 1)


def panning(frames: int = 3, step: int = 3) -> np.ndarray:
    wide = texture(96, 160)
    return np.stack([wide[:, f * step : f * step + 128] for f in range(frames)])


def test_motion_that_the_flow_finds_is_no_error() -> None:
    video = panning()
    still = np.mean(np.square(np.diff(video, axis=0) / 2), axis=(1, 2, 3))
    assert warping_error(video).shape == (2,) and np.all(warping_error(video) < 0.03 * still)


def test_what_flickers_on_its_own_is_an_error() -> None:
    """A step of brightness by 0.2 of [-1, 1] is (0.1)^2, where the flow is that of the ground truth."""
    video = panning() * 0.8
    flickering = video + np.array([0, 0.2, 0], np.float32)[:, None, None, None]
    difference = warping_error(flickering, video) - warping_error(video, video)
    np.testing.assert_allclose(difference, 0.01, rtol=0.1)


def test_what_is_uncovered_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A square moves before a texture by its own width: most of what it uncovers was hidden."""
    video = np.repeat(texture()[None, :, :128], 2, axis=0)
    square = texture()[::-1][:30, :30] ** 2
    video[0, 30:60, 20:50] = video[1, 30:60, 40:70] = square
    found = warping_error(video)[0]
    monkeypatch.setattr(temporal, '_ABSOLUTE', 1e9)
    assert found < 0.7 * warping_error(video)[0]


def test_where_no_pixel_counts_there_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, '_ABSOLUTE', -1e9)
    assert np.isnan(warping_error(panning())).all()


def test_flicker_is_the_mean_absolute_change() -> None:
    video = panning(4)
    assert np.mean(flicker(video)) == pytest.approx(np.abs(np.diff(video, axis=0)).mean(), rel=1e-5)
    np.testing.assert_array_equal(flicker(video, video), 0)
    darker, flickering = 0.9 * video, 0.9 * video
    flickering[1] += 0.1
    np.testing.assert_allclose(flicker(flickering, darker), [0.1, 0.1, 0], atol=1e-6)


@pytest.mark.parametrize('metric, name', [(warping_error, 'warping error'), (flicker, 'flicker')])
def test_bad_input_is_refused_in_one_line(metric, name: str) -> None:
    video = panning()
    for arguments, part in (
        ((video[:1],), '1 frame(s); needs at least 2'),
        ((video, video[:2]), 'differ in shape'),
        ((np.where(video > 0, np.nan, video),), 'not finite'),
        ((video, video + 100), '[-1, 1]'),
    ):
        with pytest.raises(ValueError) as caught:
            metric(*arguments)
        assert part in str(caught.value) and name in str(caught.value) and '\n' not in str(caught.value)
