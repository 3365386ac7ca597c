"""Evaluates the small stages on held-out sprites.

    python tests/benchmarks/small_weights.py [--weights FOLDER] [--stage 1|2] [--prompts 64] [--clips 16] [--output DIR]

Stage 1 makes a preview of each held-out caption (`heldout_prompts`), and `sprite_measures` finds the object and its
motion in the frames alone. Stage 2 enhances rendered low-resolution clips of other held-out scenes, whose truth is
known: the metrics of `evaluation.suite`, beside bilinear, bicubic and the ceiling of the VAE. Writes figures.json, and
images: previews.png, a row of frames for each of the first prompts, and enhanced.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fv_jax import api
from fv_jax.data.numpy_resize import resize_bilinear, resize_uint8
from fv_jax.data.synthetic import sprites
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import contact_sheet
from fv_jax.evaluation.statistics import summarize
from fv_jax.evaluation.suite import Suite
from tests.benchmarks import sprite_measures
from tests.benchmarks.enhancement import drawn_pairs, enhance, round_trip
from tests.benchmarks.heldout_prompts import heldout_prompts

BATCH = 16  # prompts a call
PROMPTS, CLIPS = 16, 8  # shown


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
    contact_sheet.preview_sheet(rows[:PROMPTS]).save(output / 'previews.png')
    hits = np.array(right)
    return {
        'prompts': count,
        'object': float(hits[:, 0].mean()),
        'motion': float(hits[:, 1].mean()),
        'both': float(hits.all(axis=1).mean()),
    }


def enhanced(fv: api.FlashVideo, count: int, output: Path) -> dict[str, float]:
    """Means over clips of the metrics of `evaluation.suite`, for bilinear, the network, and the VAE's round trip."""
    size, suite, found, rows = sprites.FINAL[1:], Suite.load(), [], []
    for i, (caption, small, truth) in enumerate(drawn_pairs(count)):
        shown = {
            'bilinear': to_uint8(resize_bilinear(small, size)),
            'bicubic': resize_uint8(to_uint8(small), size),
            'enhanced': enhance(fv, small, size, i),
            'ceiling': round_trip(fv.stage2.vae.jitted, truth),
            'truth': to_uint8(truth),
        }
        measured = {name: suite.measure(shown[name], shown['truth'], caption) for name in shown if name != 'truth'}
        found.append({f'{key}_{name}': value for name, row in measured.items() for key, value in row.items()})
        rows.append((caption, shown))
    contact_sheet.contact_sheet(rows[:CLIPS]).save(output / 'enhanced.png')
    means = {key: summarize([row[key] for row in found]) for key in found[0]}
    return {'clips': count} | {key: summary.mean for key, summary in means.items() if summary is not None}


if __name__ == '__main__':
    sys.exit(main())
