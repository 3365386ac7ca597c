"""The loss of the VAE with tiles and in bfloat16: PSNR of held-out shots after encoding and decoding.

    PYTHONPATH=. python tests/benchmarks/vae_cost.py [--vae embedded | FILE] [--frames 17] [--shots 8] [--json FILE]

The shots are those of the package, whole, 256x480. Two tiles by two, 144x256 with 32 pixels shared, are to these frames
as 568x992 with 64 to 1072x1920. Columns: PSNR to the truth; PSNR to the result of whole frames in float32.

With `--frames 9 --shots 2` and the embedded VAE (both in dB, means):

    whole, float32             28.55    inf
    whole, bfloat16            28.53   54.11
    144x256, overlap 32        28.77   43.37
    128x240, overlap 0         28.77   41.35
    64x96, overlap 16          28.81   36.25

This VAE was trained on small crops, which may be why tiles are a little better than frames; another VAE may lose as
much. Not measured with the official one.
"""

import argparse
import json
import sys
from pathlib import Path

import embedded_clips
import jax.numpy as jnp
import numpy as np

from fv_jax import weights
from fv_jax.models.vae import OFFICIAL, set_compute_dtype, split_moments
from fv_jax.models.vae_tiling import Tiling
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae

SPATIAL = OFFICIAL.latent_spec.spatial
TILES = {
    '144x256, overlap 32': Tiling((144, 256), 32, SPATIAL),
    '128x240, overlap 0': Tiling((128, 240), 0, SPATIAL),
    '64x96, overlap 16': Tiling((64, 96), 16, SPATIAL),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='PSNR that tiles and bfloat16 cost.')
    parser.add_argument('--vae', default='embedded', help="'embedded' or a file of weights")
    parser.add_argument('--frames', type=int, default=17)
    parser.add_argument('--shots', type=int, default=8)
    parser.add_argument('--json', type=Path, default=None)
    arguments = parser.parse_args(argv)
    exact = jit_vae(weights.load_vae(arguments.vae))
    rounded = jit_vae(set_compute_dtype(weights.load_vae(arguments.vae), 'bfloat16'))
    ways = {'whole, float32': (exact, None), 'whole, bfloat16': (rounded, None)}
    ways |= {name: (exact, tiling) for name, tiling in TILES.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for i, clip in enumerate(embedded_clips.clips(heldout=True, frames=arguments.frames)[: arguments.shots]):
        whole = None
        for name, (vae, tiling) in ways.items():
            video = _encode_and_decode(vae, clip, tiling)
            whole = video if whole is None else whole
            found[name].append((embedded_clips.psnr(video, clip), embedded_clips.psnr(video, whole)))
            print(f'shot {i}, {name}: {found[name][-1][0]:.3f} dB, {found[name][-1][1]:.2f} dB', flush=True)
    means = {name: np.mean(rows, axis=0).tolist() for name, rows in found.items()}
    for name, (truth, whole) in means.items():
        print(f'mean of {len(found[name])}, {name}: {truth:.3f} dB, {whole:.2f} dB')
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({'vae': arguments.vae, 'shots': found, 'means': means}) + '\n')
    return 0


def _encode_and_decode(vae: JittedVAE, clip_FHWC: np.ndarray, tiling: Tiling | None) -> np.ndarray:
    z_BFHWC, _ = split_moments(vae.encode_moments(jnp.asarray(clip_FHWC)[None], tiling))
    return np.clip(np.asarray(vae.decode(z_BFHWC, tiling)[0], np.float32), -1, 1)


if __name__ == '__main__':
    sys.exit(main())
