"""PSNR and SSIM of known videos, and what is refused."""

import numpy as np
import pytest

from fv_jax.evaluation import videos
from fv_jax.evaluation.full_reference import psnr, ssim

GREY = np.zeros((5, 16, 20, 3), np.float32)


def test_psnr_of_every_frame():
    video = GREY + np.array([0.2, 0.02, 2e-3, 0.2, 0.0], np.float32)[:, None, None, None]
    np.testing.assert_allclose(psnr(video, GREY), [20, 40, 60, 20, np.inf], rtol=1e-4)  # 10 log10(4 / 0.04)


def test_psnr_on_luma_is_of_studio_range():
    """A step of 2/255 in green alone is 128.553/255 of Y."""
    video = GREY.copy()
    video[..., 1] += 2 / 255
    np.testing.assert_allclose(psnr(video, GREY, on_luma=True), 20 * np.log10(255 / (128.553 / 255)), rtol=1e-4)


def test_border_is_omitted():
    video = GREY.copy()
    video[:, :2] = video[:, :, -2:] = 1
    assert np.isfinite(psnr(video, GREY, border=1)).all()
    assert np.isinf(psnr(video, GREY, border=2)).all()
    np.testing.assert_allclose(ssim(video, GREY, border=2), 1)


def test_frames_are_independent(monkeypatch: pytest.MonkeyPatch):
    """Nine frames are three batches, the last one padded."""
    monkeypatch.setattr(videos, '_PIXELS', 4 * 16 * 16)
    rng = np.random.default_rng(0)
    video, truth = rng.uniform(-1, 1, (2, 9, 16, 16, 3)).astype(np.float32)
    for metric in (psnr, ssim):
        single = np.concatenate([metric(video[f : f + 1], truth[f : f + 1]) for f in range(9)])
        np.testing.assert_allclose(metric(video, truth), single, rtol=1e-5)


def with_nan() -> np.ndarray:
    video = GREY.copy()
    video[3, 2, 1, 0] = np.nan
    return video


@pytest.mark.parametrize(
    'video, truth, options, parts',
    [
        (GREY, GREY[:4], {}, ['(5, 16, 20, 3)', '(4, 16, 20, 3)', 'differ in shape']),
        (GREY[0], GREY[0], {}, ['(16, 20, 3)', '(frames, height, width, 3)']),
        (GREY[..., :1], GREY[..., :1], {}, ['1 channel(s)', 'repeat a grey channel']),
        (with_nan(), GREY, {}, ['video', 'not finite']),
        (GREY, with_nan(), {}, ['ground truth', 'not finite']),
        (GREY + 200, GREY, {}, ['200 to 200', '[-1, 1]']),
        (GREY.astype(np.uint8), GREY.astype(np.uint8), {}, ['uint8', 'to_float']),
        (GREY, GREY, {'border': 8}, ['border=8', '0x4']),
        (GREY, GREY, {'border': -1}, ['border=-1']),
        (GREY[:0], GREY[:0], {}, ['0 frame(s)', 'at least 1']),
    ],
)
@pytest.mark.parametrize('metric', [psnr, ssim])
def test_bad_input_is_refused_in_one_line(metric, video, truth, options, parts) -> None:
    with pytest.raises(ValueError) as caught:
        metric(video, truth, **options)
    assert all(part in str(caught.value) for part in parts) and '\n' not in str(caught.value)
