"""VMAF and XPSNR by ffmpeg, and its errors."""

from pathlib import Path

import numpy as np
import pytest

from fv_jax.data.transforms import to_uint8
from fv_jax.evaluation import ffmpeg_metrics, weight_files
from fv_jax.evaluation.ffmpeg_metrics import vmaf, vmaf_neg, xpsnr
from tests.evaluation.extra import needs

METRICS = (vmaf, vmaf_neg, xpsnr)


def pair(frames: int = 3, height: int = 65, width: int = 67) -> tuple[np.ndarray, np.ndarray]:
    """A video of odd size whose noise decreases, and its ground truth."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(rng.uniform(-0.5, 0.5, (1, 9, 9, 3)), 8, 1), 8, 2)[:, :height, :width]
    noise = rng.normal(0, 1, (frames, height, width, 3)) * np.linspace(0.2, 0.05, frames)[:, None, None, None]
    truth = np.repeat(truth, frames, axis=0).astype(np.float32)
    return np.clip(truth + noise, -1, 1).astype(np.float32), truth


@pytest.mark.parametrize('metric', METRICS)
def test_less_noise_is_better_in_every_frame(metric) -> None:
    needs('imageio_ffmpeg', 'imageio-ffmpeg')
    video, truth = pair()
    found = metric(video, truth)
    assert found.shape == (3,) and found.dtype == np.float32 and np.all(np.diff(found) > 0)
    assert np.all(found < metric(truth, truth))


@pytest.mark.parametrize('metric', METRICS)
def test_uint8_videos_have_the_values_of_float_ones(metric) -> None:
    needs('imageio_ffmpeg', 'imageio-ffmpeg')
    np.testing.assert_array_equal(metric(*map(to_uint8, pair())), metric(*pair()))


@pytest.mark.parametrize('metric', METRICS)
def test_one_uint8_video_and_one_float_video_are_refused(metric) -> None:
    video, truth = pair()
    with pytest.raises(ValueError, match='dtype uint8'):
        metric(to_uint8(video), truth)
    with pytest.raises(ValueError, match='dtype uint8'):
        metric(video, to_uint8(truth))


def test_the_video_comes_first() -> None:
    """libvmaf distinguishes the ground truth from the video.

    Contrast beyond it is gain in the model that has no such limit.
    """
    needs('imageio_ffmpeg', 'imageio-ffmpeg')
    _, truth = pair()
    video = np.clip(truth * 1.5, -1, 1)
    assert vmaf(video, truth)[1] > vmaf(truth, video)[1] + 5
    assert vmaf(video, truth)[1] > vmaf_neg(video, truth)[1] + 1


def test_xpsnr_of_static_noise_is_near_psnr() -> None:
    needs('imageio_ffmpeg', 'imageio-ffmpeg')
    video, truth = pair(2, 64, 64)
    np.testing.assert_array_equal(xpsnr(truth, truth), np.inf)
    assert np.all((xpsnr(video, truth) > 15) & (xpsnr(video, truth) < 60))


@pytest.mark.parametrize('metric', METRICS)
def test_failing_ffmpeg_is_a_one_line_error(metric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / 'ffmpeg'
    program.write_text('#!/bin/sh\necho "no such\nfilter" >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(ffmpeg_metrics, 'find_ffmpeg', lambda: program)
    with pytest.raises(ValueError, match='ffmpeg has failed with exit code 3: no such filter'):
        metric(*pair(400, 64, 64))  # more than a pipe holds


@pytest.mark.parametrize('metric', METRICS)
def test_what_is_not_installed_is_named(metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(weight_files.MissingPackageError, match='imageio-ffmpeg is not installed; run pip install'):
        metric(*pair())


@pytest.mark.parametrize('metric', METRICS)
def test_small_frames_are_refused(metric) -> None:
    video, truth = pair()
    with pytest.raises(ValueError, match=r'frames of 31x67; needs at least 32x32'):
        metric(video[:, :31], truth[:, :31])
