"""Generates previews and videos on disk for the command `sample`, batch by batch."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.sampling import preview_store
from fv_jax.sampling.metadata import GenerationMetadata
from fv_jax.sampling.prompts import MAX_SEED, quote_prompt
from fv_jax.sampling.results import Preview, StoredPreview, Video
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline

log = logging.getLogger(__name__)

SEED_STRIDE = 1000  # between the seeds of the samples of a prompt, as in the official script
BATCH_TOKENS = 10_000  # video tokens of a batch: one official preview has 6,240, one official video 104,520


class Mp4Options(NamedTuple):
    """How an mp4 is written. fps: frames per second. crf: x264's rate factor, 0 (lossless) to 51."""

    fps: float
    crf: float


class PromptBatch(NamedTuple):
    """The prompt and the seed of every preview to generate."""

    prompts: list[str]
    seeds: list[int]

    @classmethod
    def create(cls, prompts: Sequence[str], seed: int, num_samples: int) -> 'PromptBatch':
        """Repeats each prompt `num_samples` times; sample v of prompt i has the seed `seed` + i + 1000 v.

        Raises:
          ValueError: a seed would exceed 2^32 - 1.
        """
        last = seed + len(prompts) - 1 + SEED_STRIDE * (num_samples - 1)
        require(last <= MAX_SEED, f'seed={seed}: the last preview would have seed {last}; seeds end at {MAX_SEED}')
        pairs = [(p, seed + i + SEED_STRIDE * v) for i, p in enumerate(prompts) for v in range(num_samples)]
        return cls([p for p, _ in pairs], [s for _, s in pairs])


def batch_size(latent_spec: LatentSpec, frames: int, size: tuple[int, int]) -> int:
    """Returns the default batch size for videos of this length and (height, width), at least 1."""
    return max(1, BATCH_TOKENS // latent_spec.num_tokens(frames, *size))


def generate_previews(
    fv: Pipeline, requests: PromptBatch, folder: Path, settings: PreviewSettings, batch: int | None, mp4: Mp4Options
) -> list[Path]:
    """Generates previews into folder/0, folder/1, ... and writes a contact sheet.

    Args:
      fv: the pipeline.
      requests: the prompts and seeds.
      folder: created if missing. Previews of an earlier call under higher numbers are removed at the end.
      settings: the sampler settings of stage 1.
      batch: the batch size; None for the default.
      mp4: how the previews are written.

    Returns:
      The folders of the previews, in the order of `requests`.
    """
    batch = batch or batch_size(fv.stage1.latent_spec, settings.frames, settings.size)
    folders, shown_all = [], []
    started = time.monotonic()
    log.info(
        f'generating {len(requests.prompts)} preview(s) of {settings.frames}x{settings.size[0]}x{settings.size[1]} in '
        f'{settings.num_steps} steps (the first batch includes compilation)'
    )
    for previews in fv.preview_batches(*requests, settings, batch_size=batch):
        folder.mkdir(exist_ok=True)
        for preview in previews:
            folders.append(folder / str(len(folders)))
            preview_store.save(folders[-1], preview, fps=mp4.fps, crf=mp4.crf)
            shown_all.append((folders[-1].name, preview))
            log.info(f'{folders[-1]}: {quote_prompt(preview.prompt)}, seed {preview.seed}')
    preview_store.remove_from(folder, len(folders))
    preview_store.write_sheet(folder / preview_store.SHEET, shown_all)
    log.info(f'{folder / preview_store.SHEET}: {len(folders)} preview(s) in {time.monotonic() - started:.1f} s')
    return folders


def enhance_previews(
    fv: Pipeline,
    previews: Sequence[StoredPreview],
    outputs: Sequence[Path],
    settings: EnhanceSettings,
    seed: int | None,
    batch: int | None,
    mp4: Mp4Options,
) -> None:
    """Enhances previews of one size and writes each video as soon as it exists.

    Args:
      fv: the pipeline.
      previews: stored previews, all with latents of one shape.
      outputs: the mp4 of each preview.
      settings: the sampler settings of stage 2.
      seed: of the noise of every video; None for the seed of each preview.
      batch: the batch size; None for the default.
      mp4: how the videos are written.
    """
    latent_spec = fv.stage2.latent_spec
    frames, *small = fv.find_vae(previews[0]).config.latent_spec.video_size(*previews[0].latents.shape[:3])
    size = settings.size_for(*small, latent_spec)
    batch = batch or batch_size(latent_spec, frames, size)
    seeds = [preview.seed if seed is None else seed for preview in previews]
    left = iter(outputs)
    started = time.monotonic()
    log.info(
        f'enhancing {len(previews)} preview(s) to {size[0]}x{size[1]} in {settings.num_steps} steps (the first '
        'batch includes compilation)'
    )
    for videos in fv.enhance_batches(previews, seeds, settings, batch_size=batch):
        for video in videos:
            output = next(left)
            video.save(output, fps=mp4.fps, crf=mp4.crf)
            log.info(f'{output}: {quote_prompt(video.metadata.preview.prompt)}, {size[0]}x{size[1]}')
    log.info(f'{len(previews)} video(s) in {time.monotonic() - started:.1f} s')


def reproduce(fv: Pipeline, metadata: GenerationMetadata) -> Preview | Video:
    """Generates a preview or a video again from its metadata.

    Raises:
      ValueError: the pipeline's weights are not those of the metadata.
    """
    first = metadata.preview
    ((preview,),) = fv.preview_batches([first.prompt], [first.seed], first.settings)
    _check_weights(first.weights, preview.metadata.preview.weights, 'stage 1')
    if metadata.enhance is None:
        return preview
    ((video,),) = fv.enhance_batches([preview], [metadata.enhance.seed], metadata.enhance.settings)
    _check_weights(metadata.enhance.weights, video.metadata.enhance.weights, 'stage 2')
    return video


def _check_weights(wanted: object, found: object, stage: str) -> None:
    require(
        wanted == found, f'{stage}: the weights differ from those that made it: {wanted} in the metadata, {found} here'
    )
