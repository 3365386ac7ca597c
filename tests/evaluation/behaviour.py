"""How every metric answers to known distortions: `python -m tests.evaluation.behaviour` prints the guide's table.

The clip is an embedded one of Big Buck Bunny, cropped to where it moves. Metrics on VGG16 see the
centre of one frame, and NIQE one frame.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np

from fv_jax.data import embedded
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.transforms import decode_video, to_float
from fv_jax.evaluation import ffmpeg_metrics, full_reference, niqe, no_reference, perceptual, temporal

FRAMES, HEIGHT, WIDTH = 6, 192, 288
_CENTRE = np.s_[1:2, 48:144, 72:216]
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


def clip() -> np.ndarray:
    """uint8 (F, H, W, 3)."""
    record = next(iter(read_records(embedded.heldout_shards())))
    return decode_video(record, np.random.default_rng(0))['video_FHWC'][:FRAMES, :HEIGHT, 96 : 96 + WIDTH]


def blur(video: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])


def add_noise(video: np.ndarray, sigma: float) -> np.ndarray:
    return _to_uint8(video + np.random.default_rng(0).normal(0, sigma, video.shape))


def compress(video: np.ndarray, quality: int) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return np.stack([cv2.imdecode(cv2.imencode('.jpg', frame, options)[1], cv2.IMREAD_COLOR) for frame in video])


def shuffle_frames(video: np.ndarray, distance: int) -> np.ndarray:
    """Swaps frames that are so far apart."""
    order = np.arange(len(video))
    order[: 2 * distance] = np.roll(order[: 2 * distance], distance)
    return video[order]


def shift_colour(video: np.ndarray, levels: int) -> np.ndarray:
    """Adds to red and takes from blue."""
    return _to_uint8(video + np.array([levels, 0, -levels]))


def shift_pixels(video: np.ndarray, pixels: int) -> np.ndarray:
    return np.roll(video, pixels, axis=2)


def _to_uint8(video: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


# distortion, its strengths in ascending order
DISTORTIONS = {
    'blur': (blur, (1, 2, 4)),
    'noise': (add_noise, (4, 8, 16)),
    'JPEG': (compress, (60, 25, 8)),
    'shuffling': (shuffle_frames, (1, 3)),
    'colour shift': (shift_colour, (4, 8, 16)),
    'pixel shift': (shift_pixels, (1, 2)),
}


def cheap_metrics() -> dict[str, Metric]:
    """Those that need no package."""
    found = {
        'PSNR': full_reference.psnr,
        'PSNR Y': functools.partial(full_reference.psnr, on_luma=True),
        'SSIM': full_reference.ssim,
        'warping error': temporal.warping_error,
        'flicker': temporal.flicker,
    }
    for name, metric in (
        ('sharpness', no_reference.sharpness),
        ('noise level', no_reference.noise_level),
        ('blockiness', no_reference.blockiness),
    ):
        found[name] = lambda video, truth, metric=metric: metric(video)
    return found


def package_metrics() -> dict[str, Metric]:
    """Those of the extra `evaluation`. Raises MissingPackageError."""
    alexnet, vgg16 = (perceptual.load_lpips(name) for name in ('alexnet', 'vgg16'))
    dists, natural = perceptual.load_dists(), niqe.load_niqe()
    return {
        'LPIPS AlexNet': lambda video, truth: perceptual.lpips(video, truth, alexnet),
        'LPIPS VGG16': lambda video, truth: perceptual.lpips(video[_CENTRE], truth[_CENTRE], vgg16),
        'DISTS': lambda video, truth: perceptual.dists(video[_CENTRE], truth[_CENTRE], dists),
        'NIQE': lambda video, truth: niqe.niqe(video[1:2], natural),
        'VMAF': ffmpeg_metrics.vmaf,
        'VMAF-NEG': ffmpeg_metrics.vmaf_neg,
        'XPSNR': lambda video, truth: ffmpeg_metrics.xpsnr(video, truth)[1:],
    }


def measure(metrics: dict[str, Metric]) -> dict[str, dict[str, list[float]]]:
    """Computes {metric: {distortion: means over frames, from no distortion to the strongest}}."""
    video = clip()
    truth = to_float(video)
    found = {name: {} for name in metrics}
    reference = {name: float(np.mean(metric(truth, truth))) for name, metric in metrics.items()}
    for distortion, (distort, strengths) in DISTORTIONS.items():
        distorted = [to_float(distort(video, strength)) for strength in strengths]
        for name, metric in metrics.items():
            means = [float(np.mean(metric(shown, truth))) for shown in distorted]
            found[name][distortion] = [reference[name], *means]
    return found


def main() -> None:
    print('| metric | unchanged |', *(f'{name} {", ".join(map(str, s))} |' for name, (_, s) in DISTORTIONS.items()))
    print('| --- | --- |', *('--- |' for _ in DISTORTIONS))
    for name, rows in measure(cheap_metrics() | package_metrics()).items():
        cells = [', '.join(f'{value:.3g}' for value in values[1:]) for values in rows.values()]
        print(f'| {name} | {rows["blur"][0]:.3g} |', *(f'{cell} |' for cell in cells), flush=True)


if __name__ == '__main__':
    main()
