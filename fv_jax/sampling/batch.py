"""Generates previews and videos on disk for the command `sample`, batch by batch."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.files import make_folder, remove_partial
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.paths import StoragePath
from fv_jax.parallel import distributed
from fv_jax.sampling import existing, preview_store
from fv_jax.sampling.metadata import EnhanceMetadata, GenerationMetadata, PreviewMetadata, WeightDigests
from fv_jax.sampling.prompt_list import ListProgress, sample_list
from fv_jax.sampling.prompts import MAX_SEED, quote_prompt
from fv_jax.sampling.results import Preview, StoredPreview, Video
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline

log = logging.getLogger(__name__)

SEED_STRIDE = 1000  # between the seeds of the samples of a prompt, as in the official script
# Video tokens of a batch on each device: one official preview has 6,240, one official video 104,520.
BATCH_TOKENS = 10_000


class Mp4Options(NamedTuple):
    """How an mp4 is written. fps: frames per second. crf: x264's rate factor, 0 (lossless) to 51."""

    fps: float
    crf: float

    def to_floats(self) -> dict[str, float]:
        """Returns the fields as metadata has them."""
        return {'fps': float(self.fps), 'crf': float(self.crf)}


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


def batch_size(latent_spec: LatentSpec, frames: int, size: tuple[int, int], num_devices: int) -> int:
    """Returns the default batch size for videos of this length and (height, width).

    As many as have BATCH_TOKENS on each device: a multiple of the devices where one video has fewer, and otherwise as
    many as all devices hold, at least 1.
    """
    tokens = latent_spec.num_tokens(frames, *size)
    if tokens <= BATCH_TOKENS:
        return BATCH_TOKENS // tokens * num_devices
    return max(1, BATCH_TOKENS * num_devices // tokens)


def preview_folders(folder: StoragePath, count: int) -> list[StoragePath]:
    """Returns the folders of `count` previews."""
    return [folder / str(i) for i in range(count)]


def find_existing_previews(
    fv: Pipeline,
    requests: PromptBatch,
    folder: StoragePath,
    settings: PreviewSettings,
    mp4: Mp4Options,
    overwrite: bool,
) -> dict[int, GenerationMetadata]:
    """Finds the previews that a folder has already, by their number; the arguments are those of `generate_previews`.

    The network is loaded only if a preview was made with weights of another origin, to compare the weights.

    Args:
      overwrite: whether a preview that differs is generated again, instead of refused.

    Raises:
      UsageError: without `overwrite`: a preview that differs from the one that would be generated.
    """

    def want(i: int, made: GenerationMetadata) -> GenerationMetadata:
        wanted = PreviewMetadata(requests.prompts[i], requests.seeds[i], settings, made.preview.weights)
        return dataclasses.replace(made, preview=wanted, enhance=None, **mp4.to_floats())

    def want_weights(i: int, made: GenerationMetadata) -> GenerationMetadata:
        return made if made.origin == fv.origin else _with_weights(made, fv.stage1.weight_digests)

    folders = preview_folders(folder, len(requests.prompts))
    found = existing.find_existing(folders, preview_store.read_metadata, want, overwrite, preview_store.LATENTS)
    return existing.keep_wanted(found, folders, want_weights, overwrite)


def generate_previews(
    fv: Pipeline,
    requests: PromptBatch,
    found: Mapping[int, GenerationMetadata],
    folder: StoragePath,
    settings: PreviewSettings,
    batch: int | None,
    mp4: Mp4Options,
) -> ListProgress:
    """Generates previews into folder/0, folder/1, ... and writes a contact sheet of all.

    Args:
      fv: the pipeline.
      requests: the prompts and seeds.
      found: the previews that exist.
      folder: created if missing. Previews of an earlier call under higher numbers are removed at the end.
      settings: the sampler settings of stage 1.
      batch: the batch size; None for the default.
      mp4: how the previews are written.

    Returns:
      What was made and what failed.

    Raises:
      UsageError: the weights differ from those of a preview that exists; nothing was written.
    """
    folders, sheet = preview_folders(folder, len(requests.prompts)), folder / preview_store.SHEET
    labels = [f'{f}: {quote_prompt(p)}, seed {s}' for f, p, s in zip(folders, *requests, strict=True)]
    progress = ListProgress('preview', labels, len(found))
    missing = [i for i in range(len(folders)) if i not in found]
    size = min(batch or batch_size(fv.stage1.latent_spec, settings.frames, settings.size, fv.num_devices), len(folders))
    if found:
        log.info(f'{folder}: {len(found)} of {len(folders)} preview(s) exist already')
    if missing:
        shape = f'{settings.frames}x{settings.size[0]}x{settings.size[1]} in {settings.num_steps} steps'
        log.info(f'generating {len(missing)} preview(s) of {shape} (the first batch includes compilation)')

    def sample(indices: list[int]) -> Iterator[list[Preview]]:
        prompts, seeds = ([values[i] for i in indices] for values in requests)
        return fv.preview_batches(prompts, seeds, settings, batch_size=size)

    def write(i: int, preview: Preview) -> None:
        if not first:
            return
        if not progress.made:
            _check_weights_of_found(found, folders, preview.metadata.preview.weights)
            make_folder(folder)
            sheet.unlink(missing_ok=True)  # whoever continues the list after an interrupt writes it
        preview_store.save(folders[i], preview, fps=mp4.fps, crf=mp4.crf)

    if first := distributed.is_first_process():
        remove_partial([*folders, sheet])
    sample_list(sample, write, missing, size, progress)
    if first:
        _finish_folder(folder, [path for i, path in enumerate(folders) if i not in progress.failed], len(folders))
    log.info(f'{sheet}: {len(folders) - len(progress.failed)} preview(s) in {progress.seconds():.1f} s')
    distributed.barrier('previews')  # which the other processes read
    return progress


def _finish_folder(folder: StoragePath, complete: Sequence[StoragePath], count: int) -> None:
    """Removes the previews of a longer list and writes the contact sheet, if it is missing, of those that exist."""
    preview_store.remove_from(folder, count)
    sheet = folder / preview_store.SHEET
    if not sheet.exists():
        preview_store.write_sheet(sheet, complete)


def _check_weights_of_found(
    found: Mapping[int, GenerationMetadata], folders: Sequence[StoragePath], weights: WeightDigests
) -> None:
    """Raises UsageError for previews of other weights of the same origin, such as of a run trained again."""
    fix = 'choose another folder or remove it'
    existing.keep_wanted(found, folders, lambda _, made: _with_weights(made, weights), False, fix)


def _with_weights(made: GenerationMetadata, weights: WeightDigests) -> GenerationMetadata:
    return dataclasses.replace(made, preview=dataclasses.replace(made.preview, weights=weights))


def find_existing_videos(
    previews: Sequence[StoredPreview],
    outputs: Sequence[StoragePath],
    settings: EnhanceSettings,
    seed: int | None,
    mp4: Mp4Options,
    overwrite: bool,
) -> dict[int, GenerationMetadata]:
    """Finds the enhanced videos that exist already, by their index; compares no weights of stage 2.

    The arguments are those of `enhance_previews` and `find_existing_previews`.

    Raises:
      UsageError: without `overwrite`: a video that differs from the one that would be made.
    """

    def want(i: int, found: GenerationMetadata) -> GenerationMetadata:
        preview, weights = previews[i], found.enhance.weights if found.enhance else existing.UNKNOWN_WEIGHTS
        enhanced = EnhanceMetadata(preview.seed if seed is None else seed, settings, weights)
        return dataclasses.replace(found, preview=preview.metadata.preview, enhance=enhanced, **mp4.to_floats())

    return existing.find_existing(outputs, existing.read_mp4, want, overwrite)


def keep_videos_of_weights(
    found: Mapping[int, GenerationMetadata], outputs: Sequence[StoragePath], weights: WeightDigests, overwrite: bool
) -> dict[int, GenerationMetadata]:
    """Returns the videos that were made with these weights of stage 2. Raises UsageError as `find_existing_videos`."""

    def want(i: int, made: GenerationMetadata) -> GenerationMetadata:
        return dataclasses.replace(made, enhance=dataclasses.replace(made.enhance, weights=weights))

    return existing.keep_wanted(found, outputs, want, overwrite)


def enhance_previews(
    fv: Pipeline,
    previews: Mapping[int, StoredPreview],
    outputs: Sequence[StoragePath],
    settings: EnhanceSettings,
    seed: int | None,
    batch: int | None,
    mp4: Mp4Options,
    progress: ListProgress,
) -> None:
    """Enhances previews of one size and writes each video as soon as it exists.

    Args:
      fv: the pipeline.
      previews: stored previews by their index in the list, all with latents of one shape.
      outputs: the mp4s of the list.
      settings: the sampler settings of stage 2.
      seed: of the noise of every video; None for the seed of each preview.
      batch: the batch size; None for the default.
      mp4: how the videos are written.
      progress: of the list.
    """
    if not previews:
        return
    first = next(iter(previews.values()))
    latent_spec = fv.stage2.latent_spec
    frames, *small = fv.find_vae(first).config.latent_spec.video_size(*first.latents.shape[:3])
    height, width = settings.size_for(*small, latent_spec)
    size = min(batch or batch_size(latent_spec, frames, (height, width), fv.num_devices), len(outputs))
    steps = f'{settings.num_steps} steps (the first batch includes compilation)'
    log.info(f'enhancing {len(previews)} preview(s) to {height}x{width} in {steps}')

    def sample(indices: list[int]) -> Iterator[list[Video]]:
        chosen = [previews[i] for i in indices]
        seeds = [preview.seed if seed is None else seed for preview in chosen]
        return fv.enhance_batches(chosen, seeds, settings, batch_size=size)

    def write(i: int, video: Video) -> None:
        if distributed.is_first_process():
            video.save(outputs[i], fps=mp4.fps, crf=mp4.crf)

    sample_list(sample, write, list(previews), size, progress)


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
