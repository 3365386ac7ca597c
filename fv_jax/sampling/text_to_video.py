"""The text-to-video pipeline: encodes prompts, samples both stages and attaches generation metadata."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from fv_jax import __version__
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.console import Notice
from fv_jax.core.paths import StoragePath
from fv_jax.core.throughput import Clock
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import decoding
from fv_jax.sampling import clips, preview_store, programs
from fv_jax.sampling.clip_enhancer import enhance_clip
from fv_jax.sampling.clip_shots import describe_cuts, find_clip_shots
from fv_jax.sampling.clips import Clip, EnhancedClip
from fv_jax.sampling.enhancer import NOT_FINITE, Enhancer
from fv_jax.sampling.framing import Framing, describe_rounding, scaled_size
from fv_jax.sampling.lazy_stages import LazyStage, LazyVAE, split_into_batches, take_examples
from fv_jax.sampling.metadata import (
    FPS,
    ClipMetadata,
    EnhanceMetadata,
    GenerationMetadata,
    PreviewMetadata,
    WeightDigests,
    WeightsOrigin,
)
from fv_jax.sampling.noise import SeededNoise
from fv_jax.sampling.progress import Progress, step_bar
from fv_jax.sampling.prompts import check_prompt, check_prompts, check_seed, check_seeds, is_sequence
from fv_jax.sampling.results import Preview, StoredPreview, Video
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.sampling.settings import ClipSettings, EnhanceSettings, PreviewSettings
from fv_jax.sampling.windows import Windows
from fv_jax.stages.latent_stage import EnhancementStage, PreviewStage

P = TypeVar('P', LazyStage[PreviewStage], LazyStage[EnhancementStage])

_WITHOUT_CAPTION = 'clips are enhanced without a caption, and all clips that stage 2 was trained on have one'


@dataclasses.dataclass(eq=False, repr=False)
class Pipeline:
    """The two stages, or one of them.

    Attributes:
      preview_stage, enhancement_stage: the stages; None for a stage that the weights do not hold.
      origin: where the weights were loaded from.
      preview_settings, enhance_settings: the defaults of `preview` and `enhance`.
      mesh: the devices, and how networks, batches and frames are placed on them.
      notes: warnings about the weights, one line each.
      progress: shows the steps of a batch; `progress.no_bar` shows nothing. An exception or Ctrl-C stops between steps.
      clock: seconds that sampling ran and compiled, under 'preview' and 'enhance'; without text encoding and files.
    """

    preview_stage: LazyStage[PreviewStage] | None
    enhancement_stage: LazyStage[EnhancementStage] | None
    origin: WeightsOrigin
    preview_settings: PreviewSettings
    enhance_settings: EnhanceSettings
    mesh: SamplingMesh
    notes: tuple[str, ...] = ()
    progress: Progress = step_bar
    clock: Clock = dataclasses.field(default_factory=Clock)

    @property
    def stage1(self) -> LazyStage[PreviewStage]:
        """The low-resolution stage. Raises ValueError if the pipeline has none."""
        return self._require_stage(self.preview_stage, 'stage 1', 'preview')

    @property
    def stage2(self) -> LazyStage[EnhancementStage]:
        """The super-resolution stage. Raises ValueError if the pipeline has none."""
        return self._require_stage(self.enhancement_stage, 'stage 2', 'enhance')

    @property
    def num_devices(self) -> int:
        """The number of devices, of all processes."""
        return self.mesh.mesh.size

    def preview(
        self, prompt: str | Sequence[str], seed: int | Sequence[int] = 0, settings: PreviewSettings | None = None
    ) -> Preview | list[Preview]:
        """Samples low-resolution previews: stage 1 (arXiv 2502.05179, section 'Low-Resolution Stage I').

        A batch of prompts is sampled at once; a second batch of the same shape compiles nothing. The text
        encoder is loaded, used and freed before the network runs; the network is loaded at the first call and kept.

        Args:
          prompt: the text prompt, or a sequence of prompts. White space at both ends is stripped. Prompts of more
            tokens than the text encoder takes (226 officially) are truncated, with a warning.
          seed: an integer from 0 to 2^32 - 1; for a sequence of prompts one seed each, or the first of consecutive
            seeds. A prompt and its seed give the same preview in any batch, up to rounding.
          settings: None for `preview_settings`.

        Returns:
          A `Preview`, or a list with one per prompt: `.latents` (F', H', W', C) float32, unscaled, and `.frames`
          (F, H, W, 3) uint8, at 8 frames per second. Officially F = 49 and H x W = 256 x 480, so that F' = 13
          and H' x W' = 32 x 60 (`core/latent_spec`).

        Raises:
          ValueError: an empty or invalid prompt, an invalid seed, invalid settings (ConfigError), no stage 1, or
            damaged weights.
          FileNotFoundError: weights that were removed since the pipeline was opened.
        """
        single = not is_sequence(prompt)
        prompts = [check_prompt(prompt)] if single else check_prompts(prompt)
        (previews,) = self.preview_batches(prompts, check_seeds(seed, len(prompts)), settings)
        return previews[0] if single else previews

    def enhance(
        self,
        source: StoredPreview | Sequence[StoredPreview] | np.ndarray | str | StoragePath,
        seed: int | Sequence[int] | None = None,
        settings: EnhanceSettings | None = None,
    ) -> Video | list[Video]:
        """Samples high-resolution videos: stage 2 (arXiv 2502.05179, section 'High-Resolution Stage II'), a flow from
        the latents of low-resolution videos, upsampled and noised, to those of high-resolution ones.

        Of a preview it takes the decoded latents, as its frames are rounded to uint8, and its prompt. A clip is
        enhanced without text, as `enhance_clip` does it. A second batch of the same shape, and a second window, compile
        nothing.

        Args:
          source: what `preview` or `open_preview` returned, or a sequence of them of one size, sampled as one batch; a
            folder that `sample preview` stored; a clip: the path of a video, or frames (F, H, W, 3) uint8.
          seed: as in `preview`; None for the seed of each preview, and 0 for a clip.
          settings: None for `enhance_settings`.

        Returns:
          A `Video`, or a list with one per preview: `.frames` (F, H, W, 3) uint8, as many frames as the source has,
          and H x W = 1072 x 1920 officially.

        Raises:
          ValueError: an invalid seed, previews of different sizes, an output size of another aspect ratio, invalid
            settings (ConfigError), no stage 2, damaged weights, or a source that cannot be enhanced.
          FileNotFoundError: no such path, or weights that were removed since the pipeline was opened.
        """
        if isinstance(source, str | os.PathLike):
            path = files.resolve_path(source)
            require(path.exists(), f'{source}: does not exist', FileNotFoundError)
            if not path.is_dir():
                return self._enhance_clip(clips.open_clip(path, decoding.probe(path)), seed, settings)
            source = preview_store.load(path)
        if isinstance(source, np.ndarray):
            return self._enhance_clip(clips.clip_of_frames(source), seed, settings)
        single = isinstance(source, StoredPreview)
        previews = [source] if single else list(source)
        require(previews, 'previews: must not be empty; give at least one')
        seeds = [p.seed for p in previews] if seed is None else seed
        (videos,) = self.enhance_batches(previews, check_seeds(seeds, len(previews)), settings)
        return videos[0] if single else videos

    def preview_batches(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: PreviewSettings | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterator[list[Preview]]:
        """Samples previews batch by batch; all prompts are encoded first.

        Args:
          prompts: as `check_prompts` returns them.
          seeds: one per prompt, as `check_seeds` returns them.
          settings: None for `preview_settings`.
          batch_size: prompts per batch; None for one batch.

        Yields:
          The previews of a batch.
        """
        stage1, settings = self.stage1, settings or self.preview_settings
        settings.check(stage1.latent_spec)
        stage = stage1.stage.with_sampler_config(settings)
        text_BLD = stage1.encode_prompts(prompts)
        batches = split_into_batches(len(prompts), batch_size)
        size = stage1.latent_spec.latent_size(settings.frames, *settings.size)
        shape = len(batches[0]), *size, stage.network.latent_channels
        loaded = stage1.load_stage(stage, lambda abstract: [programs.lower_preview_step(abstract, shape)])
        weights = stage1.weight_digests
        for indices in batches:
            noise = self.mesh.replicate(SeededNoise.from_seeds([seeds[i] for i in indices]))
            vae = stage1.vae.jitted
            text = self.mesh.replicate(take_examples(text_BLD, indices))
            with self.clock.timed('preview'), self.progress('preview', settings.num_steps) as on_step:
                z = programs.generate(loaded, text, noise, size, on_step=on_step)
                frames = _to_frames(self.mesh.to_host(programs.decode_latents(vae, z)))
                latents = self.mesh.to_host(z)
            metadata = {i: PreviewMetadata(prompts[i], seeds[i], settings, weights) for i in indices}
            yield [
                Preview(latents[j], GenerationMetadata(__version__, self.origin, metadata[i]), frames[j])
                for j, i in enumerate(metadata)
            ]

    def enhance_batches(
        self,
        previews: Sequence[StoredPreview],
        seeds: Sequence[int],
        settings: EnhanceSettings | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterator[list[Video]]:
        """Enhances previews batch by batch; the arguments are those of `preview_batches`."""
        stage2, settings = self.stage2, settings or self.enhance_settings
        latent_shape, decoder = _common_shape(previews), self.find_vae(previews[0])
        if any(self.find_vae(preview) is not decoder for preview in previews):
            raise ValueError('previews of different VAEs: enhance them separately')
        settings.check(stage2.latent_spec)
        num_frames, *small = decoder.config.latent_spec.video_size(*latent_shape[:3])
        size = settings.size_for(*small, stage2.latent_spec)
        stage, batches = stage2.stage.with_sampler_config(settings), split_into_batches(len(previews), batch_size)
        text_BLD = stage2.encode_prompts([settings.prompt_prefix + p.prompt for p in previews])
        latent_size = stage2.latent_spec.latent_size(num_frames, *size)
        shape, text = (len(batches[0]), *latent_size, stage.network.latent_channels), text_BLD is not None
        loaded = stage2.load_stage(stage, lambda abstract: [programs.lower_enhance_step(abstract, shape, text=text)])
        enhancer, weights = Enhancer.create(loaded, stage2.vae.jitted, settings), stage2.weight_digests
        for indices in batches:
            noise = self.mesh.replicate(SeededNoise.from_seeds([seeds[i] for i in indices]))
            z = self.mesh.replicate(np.stack([previews[i].latents for i in indices]))
            embedded = self.mesh.replicate(take_examples(text_BLD, indices))
            with self.clock.timed('enhance'), self.progress('enhance', settings.num_steps) as on_step:
                video = programs.decode_latents(decoder.jitted, z)
                frames = _to_frames(self.mesh.to_host(enhancer.enhance(video, size, embedded, noise, on_step)))
            metadata = {i: EnhanceMetadata(seeds[i], settings, weights) for i in indices}
            yield [
                Video(frames[j], dataclasses.replace(previews[i].metadata, enhance=metadata[i]))
                for j, i in enumerate(metadata)
            ]

    def enhancer(self, settings: EnhanceSettings | None = None) -> Enhancer:
        """Loads stage 2 and its VAE. settings: None for `enhance_settings`."""
        stage2, settings = self.stage2, settings or self.enhance_settings
        settings.check(stage2.latent_spec)
        loaded = stage2.loaded.with_stage(stage2.stage.with_sampler_config(settings))
        return Enhancer.create(loaded, stage2.vae.jitted, settings)

    def enhance_clip(
        self,
        clip: Clip,
        seed: int = 0,
        settings: EnhanceSettings | None = None,
        clip_settings: ClipSettings | None = None,
    ) -> EnhancedClip:
        """Enhances a clip of any length window by window, without text.

        The clip is read once to find its cuts, at each of which a new window starts; no network runs before the first
        block is read. A clip of another aspect ratio than `settings.size` is cropped or padded, never stretched.

        Args:
          clip: as `clips.open_clip` returns it.
          seed: of the noise, 0 to 2^32 - 1.
          settings: as in `enhance`.
          clip_settings: windows, cuts, colours and cropping; None for the defaults.

        Raises:
          ValueError: as `enhance`, or a clip that cannot be read; while blocks are read, also out of memory.
        """
        clip_settings = clip_settings or ClipSettings()
        given = settings or self.enhance_settings
        settings, windows = self._plan_clip(clip, given, clip_settings)
        rounding = '' if given.size else describe_rounding(clip.size, given.scale, settings.size)
        framing = Framing(clip.size, settings.size, clip_settings.fit)
        shots = find_clip_shots(clip.frames(), clip_settings.shots, clip_settings.shot_threshold)

        def blocks() -> Iterator[np.ndarray]:
            bar = functools.partial(self.progress, 'enhance', settings.num_steps)
            with self.clock.timed('enhance'):
                yield from enhance_clip(
                    self.enhancer(settings),
                    clip.frames(),
                    settings.size,
                    seed=seed,
                    windows=windows,
                    cuts=[first for first, _ in shots[1:]],
                    framing=framing,
                    color_fix=clip_settings.color_fix,
                    step_progress=bar,
                )

        def metadata() -> GenerationMetadata:
            return self.clip_metadata(clip, seed, self.stage2.weight_digests, settings, clip_settings)

        caption = _WITHOUT_CAPTION if self.stage2.stage.needs_text() else ''
        notes = tuple(filter(None, (caption, rounding, framing.describe(), describe_cuts(shots))))
        return EnhancedClip(settings.size, settings.num_steps, windows, shots, notes, blocks, metadata)

    def clip_metadata(
        self,
        clip: Clip,
        seed: int,
        weights: WeightDigests,
        settings: EnhanceSettings | None = None,
        clip_settings: ClipSettings | None = None,
    ) -> GenerationMetadata:
        """Returns the metadata of a clip that `enhance_clip` makes with weights of stage 2; reads no frames."""
        clip_settings = clip_settings or ClipSettings()
        settings, windows = self._plan_clip(clip, settings, clip_settings)
        made = EnhanceMetadata(seed, settings, weights)
        source = ClipMetadata.create(clip.name, windows, clip_settings)
        return GenerationMetadata(__version__, self.origin, enhance=made, clip=source, fps=float(clip.fps or FPS))

    def _plan_clip(
        self, clip: Clip, settings: EnhanceSettings | None, clip_settings: ClipSettings
    ) -> tuple[EnhanceSettings, Windows]:
        """Returns the settings with the size of the result, and the windows. Raises ValueError if they do not fit."""
        stage2, settings = self.stage2, settings or self.enhance_settings
        size = settings.size or scaled_size(clip.size, settings.scale, clip_settings.fit, stage2.latent_spec)
        settings = dataclasses.replace(settings, size=size)
        settings.check(stage2.latent_spec)
        stage2.stage.with_sampler_config(settings)
        return settings, Windows.create(stage2.window_frames, clip_settings.overlap, stage2.latent_spec)

    def _enhance_clip(self, clip: Clip, seed: int | Sequence[int] | None, settings: EnhanceSettings | None) -> Video:
        enhanced = self.enhance_clip(clip, check_seed(0 if seed is None else seed), settings)
        for note in enhanced.notes:
            warnings.warn(f'{clip.name or "frames"}: {note}', Notice, stacklevel=3)
        times = None if clip.times is None else tuple(clip.times())
        return Video(np.concatenate([*map(to_uint8, enhanced.blocks())]), enhanced.metadata(), times)

    def check(self, preview: PreviewSettings | None = None, enhance: EnhanceSettings | None = None) -> None:
        """Raises ValueError (ConfigError) for invalid settings, and for a pair whose sizes do not fit each other."""
        if preview is not None:
            preview.check(self.stage1.latent_spec, 'stage1.')
            self.stage1.stage.with_sampler_config(preview)
        if enhance is not None:
            enhance.check(self.stage2.latent_spec, 'stage2.')
            self.stage2.stage.with_sampler_config(enhance)
            enhance.size_for(*(preview or self.preview_settings).size, self.stage2.latent_spec)

    def open_preview(self, folder: str | StoragePath) -> Preview:
        """Loads a preview that `sample preview` stored, and decodes its latents.

        Raises:
          ValueError: the folder holds no stored preview, it was modified, or its latents are of another VAE.
        """
        stored = preview_store.load(files.resolve_path(folder))
        vae = self.find_vae(stored, f'{folder}: ').jitted
        video = programs.decode_latents(vae, self.mesh.replicate(stored.latents[None]))
        return Preview(stored.latents, stored.metadata, to_uint8(self.mesh.to_host(video)[0]))

    def find_vae(self, preview: StoredPreview, where: str = '') -> LazyVAE:
        """Returns the VAE that encoded a preview's latents. Raises ValueError if the pipeline does not have it."""
        wanted = preview.metadata.preview.weights.vae
        vaes = {part.vae.digest: part.vae for part in (self.preview_stage, self.enhancement_stage) if part is not None}
        if wanted not in vaes:
            here = ', '.join(digest[:12] for digest in vaes)
            raise ValueError(f'{where}the latents of the preview are of another VAE: {wanted[:12]}, not {here}')
        return vaes[wanted]

    def _require_stage(self, stage: P | None, name: str, purpose: str) -> P:
        if stage is None:
            where = self.origin.official or ', '.join(self.origin.checkpoints)
            raise ValueError(f'{where}: contains no {name}, which {purpose} needs')
        return stage


def _to_frames(video: np.ndarray) -> np.ndarray:
    """Returns uint8 frames. Raises ValueError for values that are not finite."""
    require(np.isfinite(video).all(), NOT_FINITE)
    return to_uint8(video)


def _common_shape(previews: Sequence[StoredPreview]) -> tuple[int, int, int, int]:
    """Returns the shape of all latents. Raises ValueError if they differ."""
    shapes = {preview.latents.shape for preview in previews}
    if len(shapes) > 1:
        listed = ' and '.join(f'{f} of {h}x{w}' for f, h, w, _ in sorted(shapes))
        raise ValueError(f'previews of different sizes ({listed} latent frames): enhance them separately')
    return previews[0].latents.shape
