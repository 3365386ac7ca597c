"""Compares two small stages 2, trained without and with model-guided pairs, on previews and on held-out truth.

    for share in 0 0.5; do
      python -m fv_jax.train --config=stage2:tiny_mixed,pairs=like_previews --config.init_from=embedded \
          --workdir=runs/share_$share --config.data.model_guided_probability=$share \
          --config.data.strong_probability=0 --config.data.flow_based_probability=0 --config.data.weak.high=4 \
          --config.data.train=sprites:40 --config.data.eval_clips=1 --config.data.cache.num_degraded_variants=2 \
          --config.data.loader.batch_size=4 --config.optim.learning_rate=1e-3 --config.optim.ema_decay=0.99 \
          --config.optim.warmup_steps=20 --config.loop.num_steps=300 --config.loop.eval_every=300
    done
    python tests/benchmarks/model_guided_pairs.py runs/share_0 runs/share_0.5 [--clips 16] [--output DIR]

Both continue the small stage 2 of the package, which is shown too. Prompts, previews, clips and noise are the same
for all.

previews: stage 1 of the package makes a preview of each held-out caption, which each stage 2 enhances. There is no
truth; the figures of videos drawn from the same captions are beside them, as what they should be.
truth: rendered low-resolution clips of other held-out scenes, against the same scenes drawn large.

Writes figures.json, previews.png and truth.png: a row for each of the first clips. Differences are model-guided less
weak, with 95 % intervals over clips.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fv_jax import api
from fv_jax.core.commands import silence_third_party_logs
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.synthetic import sprites
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import contact_sheet
from fv_jax.evaluation.statistics import paired_difference, summarize
from fv_jax.evaluation.suite import Suite
from fv_jax.weights import embedded
from tests.benchmarks.enhancement import Pair, drawn_pairs, enhance
from tests.benchmarks.heldout_prompts import heldout_prompts

METRICS = 'psnr', 'ssim', 'lpips_alexnet', 'niqe', 'sharpness', 'noise_level', 'warping_error', 'flicker'
WEAK, GUIDED, TRUTH = 'weak', 'model-guided', 'truth'
ROWS = 6  # shown

Values = Mapping[str, Sequence[Mapping[str, float | None]]]  # method -> metrics of each clip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Stage 2 without and with model-guided pairs.')
    parser.add_argument('weak', help='the run without them')
    parser.add_argument('guided', help='the run with them')
    parser.add_argument('--clips', type=int, default=16, help='previews, and clips with truth (default: 16)')
    parser.add_argument('--output', type=Path, default=Path('model_guided_pairs'))
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    silence_third_party_logs()
    first = api.FlashVideo.from_checkpoint('embedded')
    stage1 = next(path for path in embedded.stages() if 'stage1' in path.name)
    pipelines = {'before': first} | {
        name: api.FlashVideo.from_checkpoint(stage1, run)
        for name, run in ((WEAK, arguments.weak), (GUIDED, arguments.guided))
    }
    suite = Suite.load()
    suite.metrics = [metric for metric in suite.metrics if metric.name in METRICS]
    figures = {
        'previews': compare(
            suite, pipelines, preview_pairs(first, arguments.clips), arguments.output / 'previews.png', False
        ),
        'truth': compare(suite, pipelines, drawn_pairs(arguments.clips), arguments.output / 'truth.png', True),
    }
    for name, values in figures.items():
        print(f'\n{name}, {arguments.clips} clips\n\n{format_table(suite, values)}')
    (arguments.output / 'figures.json').write_text(json.dumps(figures, indent=1) + '\n')
    return 0


def preview_pairs(fv: api.FlashVideo, count: int) -> list[Pair]:
    """Previews of held-out captions, with videos drawn from the captions."""
    scenes = heldout_prompts(count)
    batches = fv.preview_batches([scene.caption for scene in scenes], list(range(count)), batch_size=4)
    previews = [preview for batch in batches for preview in batch]
    return [
        (scene.caption, to_float(preview.frames), to_float(sprites.draw_scene(scene, sprites.FINAL)))
        for scene, preview in zip(scenes, previews, strict=True)
    ]


def compare(
    suite: Suite, pipelines: Mapping[str, api.FlashVideo], pairs: Sequence[Pair], sheet: Path, has_truth: bool
) -> dict[str, list[dict[str, Any]]]:
    """Enhances the small clips by all, measures them, and draws a contact sheet."""
    rows, values = [], {name: [] for name in ('bilinear', *pipelines, TRUTH)}
    for i, (caption, small, large) in enumerate(pairs):
        shown = {'bilinear': to_uint8(resize_bilinear(small, sprites.FINAL[1:]))}
        shown |= {name: enhance(fv, small, sprites.FINAL[1:], i) for name, fv in pipelines.items()} | {
            TRUTH: to_uint8(large)
        }
        for name, video in shown.items():
            truth = shown[TRUTH] if has_truth and name != TRUTH else None
            values[name].append(suite.measure(video, truth, caption))
        rows.append((caption, shown if has_truth else {name: shown[name] for name in shown if name != TRUTH}))
    contact_sheet.contact_sheet(rows[:ROWS]).save(sheet)
    return values


def format_table(suite: Suite, values: Values) -> str:
    """A table in Markdown: a row for each metric, a column for each method, and the difference of the two runs."""
    lines = [f'| | {" | ".join(values)} | difference |', f'| --- |{" --- |" * (len(values) + 1)}']
    for metric in suite.metrics:
        found = {name: [row[metric.name] for row in clips] for name, clips in values.items()}
        means = {name: summarize(of_clips) for name, of_clips in found.items()}
        if all(mean is None for mean in means.values()):
            continue
        cells = ['' if mean is None else f'{mean.mean:.{metric.digits}f}' for mean in means.values()]
        difference = paired_difference(found[GUIDED], found[WEAK])
        interval = (
            ''
            if difference is None or difference.low is None
            else f' ± {difference.high - difference.difference:.{metric.digits}f}'
        )
        cells.append('' if difference is None else f'{difference.difference:+.{metric.digits}f}{interval}')
        lines.append(f'| {metric.label} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
