"""Compares a flow map with the teacher that it was distilled from, on held-out clips and from the same noise.

    python -m tests.benchmarks.flow_map --teacher RUN --flow-map RUN [--guidance-distilled RUN] [--output DIR]

Rows of the table: the teacher by 1, 2 and all evaluations, with guidance and without; a network that was distilled of
velocities alone; the flow map. Columns: PSNR to the truth and to the teacher's video by all evaluations, the metrics
of `evaluation.suite` that are installed, the share of clips that show the object of their caption (`sprite_measures`;
of sprites), and seconds a clip of the sampler alone, compiled. Below it the part of the distance between the teacher by
few and by all evaluations that each network closes.

PSNR to the truth alone proves nothing: guidance lowers it, so that a network without guidance closes all of that
distance. PSNR to the teacher's video and the objects tell them apart.

Writes figures.json, table.md and sheet.png: the middle frame of some clips, a row for each number of evaluations.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fv_jax.core import config as config_lib
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.shards.records import Record
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video.contact_sheet import add_label, join_tiles, stack_lines
from fv_jax.evaluation import full_reference
from fv_jax.evaluation.diagnostics import MAX_PSNR
from fv_jax.evaluation.statistics import summarize
from fv_jax.evaluation.suite import Suite, evenly_spaced
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.noise import heldout_keys
from fv_jax.stages.protocol import Batch
from fv_jax.training.state import Params
from fv_jax.weights import text_encoders, trained_runs
from tests.benchmarks import sprite_measures

COUNTS = (1, 2)  # evaluations, beside all
TEACHER, UNGUIDED, VELOCITIES, FLOW_MAP = 'teacher', 'teacher without guidance', 'guidance-distilled', 'flow map'
COLUMNS = {
    'psnr': 'PSNR to the truth',
    'psnr_teacher': 'PSNR to the teacher',
    'ssim': 'SSIM',
    'lpips_alexnet': 'LPIPS AlexNet',
    'lpips_vgg16': 'LPIPS VGG16',
    'dists': 'DISTS',
    'vmaf_neg': 'VMAF-NEG',
    'flicker': 'flicker',
    'objects': 'right object',
    'seconds': 'seconds a clip',
}
DIGITS = {'psnr': 2, 'objects': 2, 'psnr_teacher': 2, 'vmaf_neg': 1}
CLOSED = ('psnr', 'lpips_alexnet', 'dists', 'objects')  # what the teacher's few steps fall short in
SHOWN = 4  # clips in the sheet

CLOSED = ('psnr', 'lpips_alexnet', 'dists', 'objects')  # what the teacher's few steps fall short in
SHOWN = 4  # clips in the sheet
ZOOM = 2

Method = tuple[str, int]  # name, evaluations; 0 without a sampler


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='How close a flow map is to its teacher, and to the truth.')
    parser.add_argument('--teacher', required=True, help='the run of a stage 2 with guidance')
    parser.add_argument('--guidance-distilled', help='a run distilled from it, of velocities alone')
    parser.add_argument('--flow-map', help='a run distilled from it')
    parser.add_argument('--clips', type=int, default=40)
    parser.add_argument('--output', type=Path, default=Path('flow_map'))
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    folders = {TEACHER: arguments.teacher, VELOCITIES: arguments.guidance_distilled, FLOW_MAP: arguments.flow_map}
    runs = {name: trained_runs.open_run(folder) for name, folder in folders.items() if folder}
    teacher = as_taught(runs.pop(TEACHER), runs.get(FLOW_MAP))
    unguided = dataclasses.replace(teacher, stage=teacher.stage.without_guidance())
    runs = {TEACHER: teacher, UNGUIDED: unguided} | runs
    batch, records = load_clips(runs[TEACHER], arguments.clips)
    videos, seconds = sample_all(runs, batch)
    full = max(n for _, n in videos)
    decode = functools.partial(decode_uint8, runs[TEACHER].vae)
    videos |= {('source without noise', 0): decode(batch['z_low_BFHWC']), ('VAE', 0): decode(batch['z_high_BFHWC'])}
    truth = to_uint8(np.asarray(batch['high_res_BFHWC']))
    rows = measure(videos, truth, videos[TEACHER, full], [record.get('object') for record in records])
    for method, value in seconds.items():
        rows[method]['seconds'] = value
    table = f'{format_table(rows)}\n\n{format_shares(rows, full)}'
    print(table)
    (arguments.output / 'table.md').write_text(table + '\n')
    figures = {'clips': len(truth), 'rows': {f'{name}, {n}': row for (name, n), row in rows.items()}}
    (arguments.output / 'figures.json').write_text(json.dumps(figures, indent=1) + '\n')
    sheet(videos, truth, [record['caption'] for record in records]).save(arguments.output / 'sheet.png')
    return 0


def as_taught(run: trained_runs.Run, student: trained_runs.Run | None) -> trained_runs.Run:
    """Returns the teacher with the sampler that the student was distilled from."""
    if student is None:
        return run
    return dataclasses.replace(run, stage=run.stage.with_sampler_config(student.stage.teacher.sampler_config()))


def load_clips(run: trained_runs.Run, count: int) -> tuple[Batch, list[Record]]:
    """Loads and encodes held-out clips of the run's data; returns them as one batch, and their records."""
    config = config_lib.build(DataConfig, run.config['data'], 'config.data')
    records = pipeline.open_source(config.heldout, config, heldout=True)
    text = text_encoders.open_text_encoder(run.text)
    transform = pipeline.clip_transform(config, low_res=True, training=False, text=text)
    batch = pipeline.load_heldout(records, transform, range(count))
    return batch | run.stage.encode(batch), [records[i] for i in range(count)]


def sample_all(
    runs: Mapping[str, trained_runs.Run], batch: Batch
) -> tuple[dict[Method, np.ndarray], dict[Method, float]]:
    """Samples every run by 1, by 2 and by all evaluations, from the same noise.

    Returns:
      (videos, uint8 BFHWC, by method; seconds a clip of the second call of each sampler, without the VAE).
    """
    inputs = {name: batch[name] for name in ('z_low_BFHWC', 'text_BLD')}
    videos, seconds = {}, {}
    for name, run in runs.items():
        for count in (*COUNTS, run.stage.config.num_knots if run.stage.is_distilled else run.stage.config.num_steps):
            sample = sampler(run, count)
            z = jax.block_until_ready(sample(run.params, inputs))
            start = time.perf_counter()
            jax.block_until_ready(sample(run.params, inputs))
            seconds[name, count] = (time.perf_counter() - start) / len(z)
            videos[name, count] = decode_uint8(run.vae, z)
    return videos, seconds


def sampler(run: trained_runs.Run, count: int) -> Callable[[Params, Batch], jax.Array]:
    """Returns a jitted function of parameters and batch: unscaled latents by so many evaluations."""
    settings = dataclasses.replace(run.stage.sampler_config(), num_steps=count)
    stage = dataclasses.replace(run.stage.with_sampler_config(settings), encoder=None)

    @jax.jit
    def sample(params: Params, batch: Batch) -> jax.Array:
        keys_B = heldout_keys(jax.random.key(0), jnp.arange(len(batch['z_low_BFHWC'])))
        return stage.sample(run.network.model(**params), batch, keys_B, context=SINGLE_DEVICE)['z_sample_BFHWC']

    return sample


def decode_uint8(vae: JittedVAE, z_BFHWC: jax.Array) -> np.ndarray:
    """Decodes unscaled latents to uint8."""
    return to_uint8(np.asarray(vae.decode(jnp.asarray(z_BFHWC))))


def measure(
    videos: Mapping[Method, np.ndarray], truth: np.ndarray, teacher: np.ndarray, objects: Sequence[str | None]
) -> dict[Method, dict[str, float]]:
    """Returns means over clips: the metrics of the suite, to the truth; PSNR to the teacher's videos; right objects."""
    suite, rows = Suite.load(), {}
    for method, video in videos.items():
        found = [suite.measure(clip, true, str(method)) for clip, true in zip(video, truth, strict=True)]
        means = {key: summarize([clip[key] for clip in found]) for key in found[0]}
        rows[method] = {key: summary.mean for key, summary in means.items() if summary is not None}
        psnr = [full_reference.psnr(to_float(clip), to_float(own)) for clip, own in zip(video, teacher, strict=True)]
        rows[method]['psnr_teacher'] = float(np.mean(np.minimum(psnr, MAX_PSNR)))
        if all(objects):
            right = [sprite_measures.object_of(clip) == name for clip, name in zip(video, objects, strict=True)]
            rows[method]['objects'] = float(np.mean(right))
    return rows


def format_table(rows: Mapping[Method, Mapping[str, float]]) -> str:
    """Formats the table in Markdown, for each number of evaluations every method."""
    columns = {key: label for key, label in COLUMNS.items() if any(key in row for row in rows.values())}
    lines = [' | '.join(('', 'evaluations', 'forward passes', *columns.values()))]
    lines.append(' | '.join(['---'] * (len(columns) + 3)))
    for (name, count), row in sorted(rows.items(), key=lambda item: item[0][1]):
        passes = count * (2 if name == TEACHER else 1)
        values = [f'{row[key]:.{DIGITS.get(key, 3)}f}' if key in row else '' for key in columns]
        lines.append(' | '.join([name, str(count or ''), str(passes or ''), *values]))
    return '\n'.join(f'| {line} |' for line in lines)


def format_shares(rows: Mapping[Method, Mapping[str, float]], full: int) -> str:
    """Says how far the teacher's few steps are from all of them, and the part of it that the others make up for."""
    lines, others = [], [name for name in (UNGUIDED, VELOCITIES, FLOW_MAP) if (name, full) in rows]
    lines.append(' | '.join(('closed of', 'evaluations', 'teacher', f'teacher, {full}', *others)))
    lines.append(' | '.join(['---'] * (4 + len(others))))
    for key in (key for key in CLOSED if key in rows[TEACHER, full]):
        for count in COUNTS:
            few, every = rows[TEACHER, count][key], rows[TEACHER, full][key]
            closed = [
                f'{(rows[name, count][key] - few) / (every - few):.0%}' if few != every else '' for name in others
            ]
            lines.append(' | '.join([COLUMNS[key], str(count), f'{few:.3f}', f'{every:.3f}', *closed]))
    return '\n'.join(f'| {line} |' for line in lines)


def sheet(videos: Mapping[Method, np.ndarray], truth: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """Draws the middle frame of some clips: a row for each number of evaluations, a column for each method."""
    lines, middle = [], truth.shape[1] // 2
    counts = sorted({count for _, count in videos if count})
    for clip in evenly_spaced(len(truth), SHOWN):
        for count in counts:
            shown = {name: video for (name, n), video in videos.items() if n in (0, count)} | {'truth': truth}
            frames = {name: _enlarge(video[clip, middle]) for name, video in shown.items()}
            first = f'{count}: {captions[clip]}' if count == counts[0] else f'{count}'
            lines.append(add_label(join_tiles([add_label(frame, name) for name, frame in frames.items()]), first))
    return stack_lines(lines)


def _enlarge(frame_HWC: np.ndarray) -> np.ndarray:
    return frame_HWC.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


if __name__ == '__main__':
    sys.exit(main())
