"""Evaluates the small stages on held-out sprites.

    python tests/benchmarks/small_weights.py [--weights FOLDER] [--stage 1|2] [--prompts 64] [--clips 16] [--output DIR]

Stage 1 makes a preview of each held-out caption (`heldout_prompts`), and `sprite_measures` finds the object and its
motion in the frames alone. Stage 2 enhances rendered low-resolution clips of other held-out scenes,
whose truth is known: PSNR and detail against the truth, compared with bilinear and the VAE's ceiling. Writes
figures.json,
and images: previews.png, a row of frames for each of the first prompts, and enhanced.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from fv_jax import api
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.synthetic import sprites
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import contact_sheet
from fv_jax.evaluation.statistics import summarize
from fv_jax.evaluation.suite import Suite
from fv_jax.sampling import programs
from fv_jax.sampling.noise import SeededNoise
from tests.benchmarks import sprite_measures
from tests.benchmarks.heldout_prompts import heldout_prompts

BATCH = 16  # prompts a call
ROWS = 8  # shown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='How well the small stages do on held-out sprites.')
    parser.add_argument('--weights', nargs='+', default=['embedded'], help='what FlashVideo.from_checkpoint takes')
    parser.add_argument('--stage', type=int, choices=(1, 2), default=None, help='one of them alone; default: both')
    parser.add_argument('--prompts', type=int, default=64)
    parser.add_argument('--clips', type=int, default=16)
    parser.add_argument('--output', type=Path, default=Path('small_weights'))
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    fv = api.FlashVideo.from_checkpoint(*arguments.weights)
    figures = {'weights': arguments.weights}
    if arguments.stage != 2:
        figures['stage1'] = previews(fv, arguments.prompts, arguments.output)
    if arguments.stage != 1:
        figures['stage2'] = enhanced(fv, arguments.clips, arguments.output)
    (arguments.output / 'figures.json').write_text(json.dumps(figures, indent=1) + '\n')
    print(json.dumps({name: value for name, value in figures.items() if name != 'weights'}, indent=1))
    return 0


def previews(fv: api.FlashVideo, count: int, output: Path) -> dict[str, float]:
    """Shares of the prompts whose preview shows the object, and moves, as they say; and of those that do both."""
    scenes = heldout_prompts(count)
    prompts, rows, right = [scene.caption for scene in scenes], [], []
    for batch in fv.preview_batches(prompts, list(range(count)), batch_size=BATCH):
        for preview in batch:
            scene = scenes[len(right)]
            seen = sprite_measures.object_of(preview.frames), sprite_measures.motion_of(preview.frames)
            right.append((seen[0] == scene.object, seen[1] == scene.motion))
            rows.append((f'{preview.prompt} (seen: {seen[0]}, {seen[1]})', preview.frames))
    contact_sheet.preview_sheet(rows[:ROWS]).save(output / 'previews.png')
    hits = np.array(right)
    return {
        'prompts': count,
        'object': float(hits[:, 0].mean()),
        'motion': float(hits[:, 1].mean()),
        'both': float(hits.all(axis=1).mean()),
    }


def enhanced(fv: api.FlashVideo, count: int, output: Path) -> dict[str, float]:
    """Means over clips of the metrics of `evaluation.suite`, for bilinear, the network, and the VAE's round trip."""
    part, size = fv.stage2, sprites.FINAL[1:]
    loaded = part.loaded.with_stage(part.stage.with_sampler_config(fv.enhance_settings))
    suite, found, rows = Suite.load(), [], []
    for i, scene in enumerate(heldout_prompts(count, seed=1)):
        small, truth = (to_float(sprites.draw_scene(scene, size)) for size in (sprites.PREVIEW, sprites.FINAL))
        z_low = programs.low_res_latents(part.vae.jitted, jnp.asarray(small)[None], size)
        z_high = programs.enhance_latents(loaded, z_low, None, SeededNoise.from_seeds([i]))
        ceiling = part.vae.jitted.encode(jnp.asarray(truth)[None])
        shown = {
            'bilinear': resize_bilinear(small, size),
            'enhanced': np.asarray(programs.decode_latents(part.vae.jitted, z_high)[0]),
            'ceiling': np.asarray(programs.decode_latents(part.vae.jitted, ceiling)[0]),
        }
        shown = {name: to_uint8(video) for name, video in (shown | {'truth': truth}).items()}
        measured = {
            name: suite.measure(shown[name], shown['truth'], scene.caption) for name in shown if name != 'truth'
        }
        found.append({f'{key}_{name}': value for name, row in measured.items() for key, value in row.items()})
        rows.append((scene.caption, shown))
    contact_sheet.contact_sheet(rows[:ROWS]).save(output / 'enhanced.png')
    means = {key: summarize([row[key] for row in found]) for key in found[0]}
    return {'clips': count} | {key: summary.mean for key, summary in means.items() if summary is not None}


if __name__ == '__main__':
    sys.exit(main())
