"""The walk from prompts to previews to videos on disk, for the command `sample`: batch by batch, each result written as
soon as it is there.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.sampling import preview_store
from fv_jax.sampling.metadata import Record
from fv_jax.sampling.prompts import MAX_SEED, shown
from fv_jax.sampling.results import Preview, Stored, Video
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline

log = logging.getLogger(__name__)

REPEAT_SEEDS = 1000  # between the seeds of a prompt's variants, as in the official script
BATCH_TOKENS = 10_000  # of video, at once: one official preview has 6,240, one official video 104,520


class File(NamedTuple):
    """How an mp4 is written."""

    fps: float
    crf: float


class Rows(NamedTuple):
    """What is to be previewed: a prompt and a seed each."""

    prompts: list[str]
    seeds: list[int]

    @classmethod
    def of(cls, prompts: Sequence[str], seed: int, variants: int) -> 'Rows':
        """Each prompt `variants` times: prompt i has the seeds seed + i + 1000 v.

        Raises ValueError where a seed would be too large.
        """
        last = seed + len(prompts) - 1 + REPEAT_SEEDS * (variants - 1)
        require(last <= MAX_SEED, f'seed={seed}: the last preview would have {last}; seeds end at {MAX_SEED}')
        pairs = [(p, seed + i + REPEAT_SEEDS * v) for i, p in enumerate(prompts) for v in range(variants)]
        return cls([p for p, _ in pairs], [s for _, s in pairs])


def batch_size(latent_spec: LatentSpec, frames: int, size: tuple[int, int]) -> int:
    """How many videos of this length and (height, width) go at once, if the user does not say."""
    return max(1, BATCH_TOKENS // latent_spec.num_tokens(frames, *size))


def make_previews(
    fv: Pipeline, rows: Rows, run: Path, settings: PreviewSettings, batch: int | None, file: File
) -> list[Path]:
    """Previews all rows into run/0, run/1, ... and draws the contact sheet; returns their folders.

    What an earlier call left in higher numbers is removed at the end.
    """
    batch = batch or batch_size(fv.stage1.latent_spec, settings.frames, settings.size)
    folders, shown_all = [], []
    started = time.monotonic()
    log.info(
        f'making {len(rows.prompts)} preview(s) of {settings.frames}x{settings.size[0]}x{settings.size[1]} in '
        f'{settings.num_steps} steps, after compiling what is new'
    )
    for previews in fv.preview_batches(*rows, settings, batch_size=batch):
        run.mkdir(exist_ok=True)
        for preview in previews:
            folders.append(run / str(len(folders)))
            preview_store.store(folders[-1], preview, fps=file.fps, crf=file.crf)
            shown_all.append((folders[-1].name, preview))
            log.info(f'{folders[-1]}: {shown(preview.prompt)}, seed {preview.seed}')
    preview_store.remove_from(run, len(folders))
    preview_store.write_sheet(run / preview_store.SHEET, shown_all)
    log.info(f'{run / preview_store.SHEET}: {len(folders)} preview(s) in {time.monotonic() - started:.1f} s')
    return folders


def make_videos(
    fv: Pipeline,
    previews: Sequence[Stored],
    outputs: Sequence[Path],
    settings: EnhanceSettings,
    seed: int | None,
    batch: int | None,
    file: File,
) -> None:
    """Enhances previews of one size and writes each as soon as it is there. seed: None for the previews' own."""
    latent_spec = fv.stage2.latent_spec
    frames, *small = fv.vae_of(previews[0]).config.latent_spec.video_size(*previews[0].latents.shape[:3])
    size = settings.size_for(*small, latent_spec)
    batch = batch or batch_size(latent_spec, frames, size)
    seeds = [preview.seed if seed is None else seed for preview in previews]
    left = iter(outputs)
    started = time.monotonic()
    log.info(
        f'enhancing {len(previews)} preview(s) to {size[0]}x{size[1]} in {settings.num_steps} steps, after compiling '
        'what is new'
    )
    for videos in fv.enhance_batches(previews, seeds, settings, batch_size=batch):
        for video in videos:
            output = next(left)
            video.save(output, fps=file.fps, crf=file.crf)
            log.info(f'{output}: {shown(video.record.preview.prompt)}, {size[0]}x{size[1]}')
    log.info(f'{len(previews)} video(s) in {time.monotonic() - started:.1f} s')


def repeat(fv: Pipeline, record: Record) -> Preview | Video:
    """Makes again what a record is of. Raises ValueError where the weights are not those of the record."""
    first = record.preview
    ((made,),) = fv.preview_batches([first.prompt], [first.seed], first.settings)
    _check_weights(first.weights, made.record.preview.weights, 'first')
    if record.enhance is None:
        return made
    ((video,),) = fv.enhance_batches([made], [record.enhance.seed], record.enhance.settings)
    _check_weights(record.enhance.weights, video.record.enhance.weights, 'second')
    return video


def _check_weights(wanted: object, found: object, stage: str) -> None:
    require(wanted == found, f'the {stage} stage is not the one that made it: it was {wanted}, and here is {found}')
