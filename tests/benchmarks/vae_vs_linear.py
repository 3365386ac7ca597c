"""The yardstick of the small VAE: PSNR of held-out shots beside the best linear codec of the same rate.

    python tests/benchmarks/vae_vs_linear.py [--vae embedded | FILE | RUN] [--json FILE]

The shots are those of the package, whole, 33 frames at 256x480. The linear codec is a PCA of 16 components of 4x8x8
blocks (768 numbers), as many numbers as the VAE's latents have, fitted on the training shots; a clip's first frame,
which the VAE codes alone, is a block of its own, four times the same frame.
"""

import argparse
import json
import sys
from pathlib import Path

import embedded_clips
import jax.numpy as jnp
import numpy as np

from fv_jax.stages.frozen_vae import jit_vae

COMPONENTS = 16
FRAMES, SIDE = 4, 8  # of a block


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='The small VAE beside the best linear codec of the same rate.')
    parser.add_argument('--vae', default='embedded', help="'embedded', a file of weights, or a run's folder")
    parser.add_argument('--json', type=Path, default=None)
    arguments = parser.parse_args(argv)
    vae, linear = (
        jit_vae(embedded_clips.open_vae(arguments.vae)),
        Linear(embedded_clips.clips(heldout=False, frames=17)),
    )
    rows = []
    for i, clip in enumerate(embedded_clips.clips(heldout=True, frames=33)):
        decoded = np.asarray(vae.decode(vae.encode(jnp.asarray(clip)[None]))[0])
        rows.append((embedded_clips.psnr(decoded, clip), embedded_clips.psnr(linear(clip), clip)))
        print(f'shot {i}: VAE {rows[-1][0]:.2f} dB, linear {rows[-1][1]:.2f} dB', flush=True)
    mean = np.mean(rows, axis=0)
    print(f'mean: VAE {mean[0]:.2f} dB, linear {mean[1]:.2f} dB, {mean[0] - mean[1]:+.2f} dB')
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({'vae': arguments.vae, 'shots': rows, 'mean': mean.tolist()}) + '\n')
    return 0


class Linear:
    """The codec, fitted on clips (F, H, W, 3)."""

    def __init__(self, clips: list[np.ndarray]):
        size = FRAMES * SIDE * SIDE * 3
        total, gram, count = np.zeros(size), np.zeros((size, size)), 0
        for clip in clips:
            blocks = _blocks(clip)
            total, gram, count = total + blocks.sum(0), gram + blocks.T @ blocks, count + len(blocks)
        self.mean = (total / count).astype(np.float32)
        covariance = gram / count - np.outer(self.mean, self.mean)
        self.basis = np.linalg.eigh(covariance)[1][:, -COMPONENTS:].astype(np.float32)

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        centred = _blocks(clip) - self.mean
        return _clip(centred @ self.basis @ self.basis.T + self.mean, clip.shape)


def _blocks(clip_FHWC: np.ndarray) -> np.ndarray:
    """(blocks, 768), the first frame four times."""
    padded = np.concatenate([np.repeat(clip_FHWC[:1], FRAMES - 1, axis=0), clip_FHWC])
    frames, height, width, _ = padded.shape
    cut = padded.reshape(frames // FRAMES, FRAMES, height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return cut.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, FRAMES * SIDE * SIDE * 3).astype(np.float32)


def _clip(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    frames, height, width, _ = shape
    cut = blocks.reshape(-1, height // SIDE, width // SIDE, FRAMES, SIDE, SIDE, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    return cut.reshape(-1, height, width, 3)[-frames:]


if __name__ == '__main__':
    sys.exit(main())
