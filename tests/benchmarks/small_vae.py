"""Evaluates a small VAE on held-out clips: sprites in motion at 128x192 and videos at 256x480.

    python -m tests.benchmarks.small_vae [--vae embedded | FILE | RUN] [--clips 20] [--output DIR]

Each clip is encoded and decoded whole. Means over clips of PSNR, of LPIPS and DISTS, and PSNR by frame index: a VAE
that smears motion has good first frames only. Writes DIR/figures.json and DIR/SET.png, of the first clips: truth above,
round trip below, at the first, the middle and the last frame.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fv_jax.data.synthetic import sprites
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.evaluation import perceptual
from fv_jax.stages.frozen_vae import jit_vae
from tests.benchmarks import embedded_clips
from tests.benchmarks.enhancement import round_trip
from tests.benchmarks.heldout_prompts import heldout_prompts

VIDEO_FRAMES = 33
SHOWN = 4  # clips in an image


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='How well a small VAE reconstructs held-out clips.')
    parser.add_argument('--vae', default='embedded', help="'embedded', a file of weights, or a run's folder")
    parser.add_argument('--clips', type=int, default=20, help='of sprites; there are 8 videos')
    parser.add_argument('--sets', nargs='+', default=['sprites', 'videos'], choices=('sprites', 'videos'))
    parser.add_argument('--output', type=Path, default=Path('small_vae'))
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    vae = jit_vae(embedded_clips.open_vae(arguments.vae))
    figures = {'vae': arguments.vae}
    for name in arguments.sets:
        clips = _load(name, arguments.clips)
        pairs = [(round_trip(vae, clip), to_uint8(clip)) for clip in clips]
        figures[name] = measure(pairs)
        _sheet(pairs[:SHOWN]).save(arguments.output / f'{name}.png')
    (arguments.output / 'figures.json').write_text(json.dumps(figures, indent=1) + '\n')
    print(json.dumps(figures, indent=1))
    return 0


def measure(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float | list[float]]:
    """Measures decoded uint8 clips (F, H, W, 3) beside their truth."""
    errors_NF = [np.mean(np.square(decoded.astype(np.float64) - truth), axis=(1, 2, 3)) for decoded, truth in pairs]
    psnr_NF = 10 * np.log10(255**2 / np.maximum(errors_NF, 1e-9))
    alex, dists = perceptual.load_lpips('alexnet'), perceptual.load_dists()
    sampled = [tuple(to_float(video[::4]) for video in pair) for pair in pairs]
    return {
        'psnr': round(float(psnr_NF.mean()), 3),
        'lpips_alex': round(float(np.mean([perceptual.lpips(*pair, alex).mean() for pair in sampled])), 4),
        'dists': round(float(np.mean([perceptual.dists(*pair, dists).mean() for pair in sampled])), 4),
        'psnr_of_frame': [round(float(value), 2) for value in psnr_NF.mean(axis=0)],
    }


def _load(name: str, count: int) -> list[np.ndarray]:
    if name == 'videos':
        return embedded_clips.clips(heldout=True, frames=VIDEO_FRAMES)
    return [to_float(sprites.draw_scene(scene, sprites.PREVIEW)) for scene in heldout_prompts(count)]


def _sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    def row(clip: np.ndarray) -> np.ndarray:
        return np.concatenate([clip[i] for i in (0, len(clip) // 2, len(clip) - 1)], axis=1)

    return Image.fromarray(np.concatenate([np.concatenate([row(t), row(d)]) for d, t in pairs]))


if __name__ == '__main__':
    sys.exit(main())
