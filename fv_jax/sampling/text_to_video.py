"""Prompt to preview to video: the lines of `sampling`, with texts, seeds and records around them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from fv_jax import __version__
from fv_jax.core.checks import require
from fv_jax.core.parallel_context import Rules
from fv_jax.core.throughput import Clock
from fv_jax.data.transforms import to_uint8
from fv_jax.sampling import preview_store, programs
from fv_jax.sampling.lazy_stages import Part, VAEPart, batches, rows_of
from fv_jax.sampling.metadata import Enhanced, Origin, Previewed, Record
from fv_jax.sampling.noise import SeededNoise
from fv_jax.sampling.prompts import check_prompt, check_prompts, check_seeds, several
from fv_jax.sampling.results import Preview, Stored, Video
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages.low_res import LowRes
from fv_jax.stages.super_res import SuperRes

P = TypeVar('P', Part[LowRes], Part[SuperRes])


@dataclasses.dataclass(eq=False, repr=False)
class Pipeline:
    """Both stages, or one of them.

    preview_settings, enhance_settings: what is used where a call gives none.
    notes: what a user should know of the weights, a line each.
    clock: how long previewing ('preview') and enhancing ('enhance') ran, texts and files left out.
    """

    first: Part[LowRes] | None
    second: Part[SuperRes] | None
    origin: Origin
    preview_settings: PreviewSettings
    enhance_settings: EnhanceSettings
    rules: Rules
    notes: tuple[str, ...] = ()
    clock: Clock = dataclasses.field(default_factory=Clock)

    @property
    def stage1(self) -> Part[LowRes]:
        """Stage 1. Raises ValueError where the pipeline has none."""
        return self._part(self.first, 'stage 1', 'preview')

    @property
    def stage2(self) -> Part[SuperRes]:
        """Stage 2. Raises ValueError where the pipeline has none."""
        return self._part(self.second, 'stage 2', 'enhance')

    def preview(
        self, prompt: str | Sequence[str], seed: int | Sequence[int] = 0, settings: PreviewSettings | None = None
    ) -> Preview | list[Preview]:
        """Samples low-resolution previews: stage 1 (arXiv 2502.05179, section 'Low-Resolution Stage I').

        A batch of prompts is one jitted call of the network; a second call of the same shape compiles nothing. The text
        encoder is read, used and let go before the network runs; the network is read at the first call, and kept.

        Args:
          prompt: what is to be seen, in words; or several. White space around one is left out. More tokens than the
            text encoder takes (226 officially) are cut off, with a warning that says so.
          seed: a whole number from 0 to 2^32 - 1; for several prompts one for each, or the first of as many that follow
            each other. A prompt and its seed give the same preview in any batch, up to rounding.
          settings: None for `preview_settings`.

        Returns:
          A `Preview`, or a list of one for each prompt: `.latents` (F', H', W', C) float32, not scaled, and `.frames`
          (F, H, W, 3) uint8, at 8 frames a second. Officially F = 49 and H x W = 256 x 480, so that F' = 13
          and H' x W' = 32 x 60 (`core/latent_spec`).

        Raises:
          ValueError: an empty prompt or one that is no text, a seed that is none, settings that cannot be
            (ConfigError), no first stage, or weights that turn out damaged.
          FileNotFoundError: weights that are no longer there.
        """
        single = not several(prompt)
        prompts = [check_prompt(prompt)] if single else check_prompts(prompt)
        (previews,) = self.preview_batches(prompts, check_seeds(seed, len(prompts)), settings)
        return previews[0] if single else previews

    def enhance(
        self,
        preview: Stored | Sequence[Stored],
        seed: int | Sequence[int] | None = None,
        settings: EnhanceSettings | None = None,
    ) -> Video | list[Video]:
        """Makes previews large and detailed: stage 2 (arXiv 2502.05179, section 'High-Resolution Stage II'), a flow
        from the previews' latents, made larger and noised, to those of a high-resolution video.

        It starts from the latents, decoded anew: the preview's frames are rounded. A batch is one jitted call of the
        network; a second call of the same shape compiles nothing.

        Args:
          preview: what `preview` or `open_preview` gave; or several of one size, which are held in memory together.
          seed: as in `preview`; None takes the preview's own.
          settings: None for `enhance_settings`.

        Returns:
          A `Video`, or a list of one for each preview: `.frames` (F, H, W, 3) uint8, as many frames as the preview has,
          and H x W = 1072 x 1920 officially.

        Raises:
          ValueError: a seed that is none, previews of several sizes, a size that would stretch them, settings that
            cannot be (ConfigError), no second stage, or weights that turn out damaged.
          FileNotFoundError: weights that are no longer there.
        """
        single = isinstance(preview, Stored)
        previews = [preview] if single else list(preview)
        require(previews, 'no previews: give at least one')
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
        """`preview` of many prompts, batch by batch; all texts are encoded at once. None: one batch.

        prompts, seeds: checked ones.
        """
        first, settings = self.stage1, settings or self.preview_settings
        settings.check(first.latent_spec)
        stage = settings.apply(first.stage)
        text_BLD, text_digest = first.embedded(prompts)
        loaded, weights = first.loaded.sampled_as(stage), first.weights(text_digest)
        for rows in batches(len(prompts), batch_size):
            noise = SeededNoise.of([seeds[i] for i in rows])
            size = first.latent_spec.latent_size(settings.frames, *settings.size)
            vae = first.vae.jitted
            with self.clock.timed('preview'):
                z = programs.generate(loaded, rows_of(text_BLD, rows), noise, size, rules=self.rules)
                frames, latents = to_uint8(np.asarray(programs.decoded(vae, z))), np.asarray(z)
            made = {i: Previewed(prompts[i], seeds[i], settings, weights) for i in rows}
            yield [
                Preview(latents[row], Record(__version__, self.origin, made[i]), frames[row])
                for row, i in enumerate(made)
            ]

    def enhance_batches(
        self,
        previews: Sequence[Stored],
        seeds: Sequence[int],
        settings: EnhanceSettings | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterator[list[Video]]:
        """`enhance` of many previews, batch by batch, as `preview_batches` does it."""
        second, settings = self.stage2, settings or self.enhance_settings
        latent_shape, decoder = _common_shape(previews), self.vae_of(previews[0])
        if any(self.vae_of(preview) is not decoder for preview in previews):
            raise ValueError('previews of several VAEs: enhance each by itself')
        settings.check(second.latent_spec)
        _, *small = decoder.config.latent_spec.video_size(*latent_shape[:3])
        stage, size = settings.apply(second.stage), settings.size_for(*small, second.latent_spec)
        tiling = settings.tiling(second.latent_spec)
        text_BLD, text_digest = second.embedded([settings.prompt_prefix + p.prompt for p in previews])
        loaded, weights = second.loaded.sampled_as(stage), second.weights(text_digest)
        for rows in batches(len(previews), batch_size):
            noise = SeededNoise.of([seeds[i] for i in rows])
            z = np.stack([previews[i].latents for i in rows])
            vae, sampled = second.vae.jitted, noise if settings.sample_posterior else None
            with self.clock.timed('enhance'):
                video = programs.decoded(decoder.jitted, z)
                z_low = programs.low_res_latents(vae, video, size, sampled, tiling)
                z_high = programs.transport(loaded, z_low, rows_of(text_BLD, rows), noise, rules=self.rules)
                large = programs.decoded(vae, z_high, tiling, width_slices=settings.slices)
                frames = to_uint8(np.asarray(large))
            made = {i: Enhanced(seeds[i], settings, weights) for i in rows}
            yield [
                Video(frames[row], dataclasses.replace(previews[i].record, enhance=made[i]))
                for row, i in enumerate(made)
            ]

    def check(self, preview: PreviewSettings | None = None, enhance: EnhanceSettings | None = None) -> None:
        """Raises ValueError (ConfigError) for settings that cannot be, alone or one after the other."""
        if preview is not None:
            preview.check(self.stage1.latent_spec, 'stage1.')
            preview.apply(self.stage1.stage)
        if enhance is not None:
            enhance.check(self.stage2.latent_spec, 'stage2.')
            enhance.apply(self.stage2.stage)
            enhance.size_for(*(preview or self.preview_settings).size, self.stage2.latent_spec)

    def open_preview(self, folder: str | Path) -> Preview:
        """A preview from where `sample` stored it, decoded again from its latents.

        Raises ValueError: nothing is stored there, it was changed since, or its latents are those of another VAE.
        """
        stored = preview_store.load(Path(folder))
        video = programs.decoded(self.vae_of(stored, f'{folder}: ').jitted, stored.latents[None])
        return Preview(stored.latents, stored.record, to_uint8(np.asarray(video[0])))

    def vae_of(self, preview: Stored, where: str = '') -> VAEPart:
        """The VAE that decodes a preview. Raises ValueError where it is none of the pipeline's."""
        wanted = preview.record.preview.weights.vae
        vaes = {part.vae.digest: part.vae for part in (self.first, self.second) if part is not None}
        if wanted not in vaes:
            here = ', '.join(digest[:12] for digest in vaes)
            raise ValueError(f'{where}a preview whose latents are those of another VAE, {wanted[:12]}; here is {here}')
        return vaes[wanted]

    def _part(self, part: P | None, name: str, purpose: str) -> P:
        if part is None:
            where = self.origin.official or ', '.join(self.origin.checkpoints)
            raise ValueError(f'{where}: holds no {name}, and cannot {purpose}')
        return part


def _common_shape(previews: Sequence[Stored]) -> tuple[int, int, int, int]:
    """Of the latents of all. Raises ValueError for several sizes or lengths."""
    shapes = {preview.latents.shape for preview in previews}
    if len(shapes) > 1:
        listed = ' and '.join(f'{f} of {h}x{w}' for f, h, w, _ in sorted(shapes))
        raise ValueError(f'previews of several sizes ({listed} latent frames): enhance each by itself')
    return previews[0].latents.shape
