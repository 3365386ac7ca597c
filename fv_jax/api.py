"""The Python facade: from a prompt to a preview to a video."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fv_jax import weights
from fv_jax.checkpoints.manager import FOLDER, CheckpointError
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion.time_grids import Numerics
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.layers import DtypeName
from fv_jax.sampling.lazy_stages import LazyStage, LazyTextEncoder, LazyVAE
from fv_jax.sampling.metadata import WeightsOrigin
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline
from fv_jax.stages import registry
from fv_jax.stages.frozen_vae import jit_vae
from fv_jax.stages.latent_stage import EnhancementStage, LatentStage, PreviewStage
from fv_jax.stages.low_res import LowRes
from fv_jax.stages.super_res import SuperRes
from fv_jax.text.encoder import TextConfig
from fv_jax.training.state import ModelDef
from fv_jax.weights import embedded, official_release
from fv_jax.weights.text_encoders import CHOICES, open_text_encoder
from fv_jax.weights.trained_runs import (
    EMBEDDED,
    find_text_encoder,
    frozen_vae,
    open_checkpoint,
    open_run,
    stage_config_of,
    unverified,
)

STAGES, SUFFIX = ('stage1', 'stage2'), '.safetensors'  # the runs in a folder that holds a whole pipeline

__all__ = ['FlashVideo', 'open_run']

VAEKey = tuple[str, DtypeName, int]  # its name, what it computes in, the channels that its stage expects


class FlashVideo(Pipeline):
    """FlashVideo, ready to use:

        fv = fv_jax.FlashVideo.from_official('checkpoints')
        preview = fv.preview('a ladybug moves from left to right over a beach', seed=1)
        preview.save('preview.mp4')
        video = fv.enhance(preview)
        video.save('video.mp4')

    Opening looks at every file and reads no network; a network is read when it is first used. `preview_settings` and
    `enhance_settings` are what a call uses where it gives no others.
    """

    @classmethod
    def from_official(
        cls,
        folder: str | Path,
        *,
        numerics: Numerics = 'exact',
        dtype: DtypeName = 'bfloat16',
        text: TextConfig | None = None,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> 'FlashVideo':
        """The official release, with the official settings.

        Args:
          folder: with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl in it.
          numerics: of stage 2, see `EnhanceSettings`; a default, like all settings.
          dtype: what both DiTs and T5 keep their weights in and compute in; the VAE is float32. bfloat16 is official.
          text: a text encoder in place of t5-v1_1-xxl, or that one run otherwise.
          context: the parallel context: sharding constraints, attention and padding.

        Raises:
          FileNotFoundError: no such folder, or something is missing from it; all that is missing is named.
          ValueError: a file is damaged, is another one, or does not fit the others.
        """
        there = official_release.open_release(Path(folder), dtype, text)
        name = str(there.vae)
        vae = LazyVAE(there.vae_config, lambda: jit_vae(weights.load_vae(name)), lambda: weights.vae_fingerprint(name))
        encoder = LazyTextEncoder(there.text.encoder, lambda: open_text_encoder(there.text))
        stages = (
            (official_release.STAGE1, LowRes),
            (official_release.STAGE2, SuperRes),
        )
        first, second = (
            LazyStage(
                f'{folder}/{name}',
                stage(stage.official.options, there.configs[name]),
                there.read[name],
                vae,
                encoder,
            )
            for name, stage in stages
        )
        origin = WeightsOrigin(official=str(folder), dtype=dtype, text=text)
        return cls(first, second, origin, PreviewSettings(), EnhanceSettings(numerics=numerics), context)

    @classmethod
    def from_origin(cls, origin: WeightsOrigin, *, context: ParallelContext = SINGLE_DEVICE) -> 'FlashVideo':
        """What a record says that a video was made with. Raises what the other two do."""
        if origin.official is not None:
            return cls.from_official(origin.official, dtype=origin.dtype, text=origin.text, context=context)
        return cls.from_checkpoint(*origin.checkpoints, steps=origin.steps or None, text=origin.text, context=context)

    @classmethod
    def from_checkpoint(
        cls,
        *folders: str | Path,
        steps: Sequence[int] | None = None,
        numerics: Numerics | None = None,
        text: TextConfig | None = None,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> 'FlashVideo':
        """Trained, converted or exported stages, with the settings of their configurations.

        Args:
          folders: runs, which are work directories, exported folders or exported files; or one folder with two such in
            it, called stage1 and stage2; or 'embedded', the small ones in the package. With one stage alone, the
            other's method raises ValueError.
          steps: which checkpoint of each run, in their order; None takes the newest.
          numerics, context: as in `from_official`; None is the configuration's.
          text: the text encoder, where the first stage names none, or in place of the one that is named. A second stage
            that names none was trained without, and gets none.

        Raises:
          CheckpointError: no checkpoint there, or a damaged one.
          ConfigError, ValueError: not a stage of a pipeline, twice the same, or one that names no text encoder.
          FileNotFoundError: the VAE or the text encoder that a checkpoint names is not there.
        """
        runs = [run for folder in folders for run in _runs(folder)]
        if steps is not None and len(steps) != len(runs):
            raise ValueError(f'steps: {len(steps)} for {len(runs)} run(s), {", ".join(map(str, runs))}')
        vaes: dict[VAEKey, LazyVAE] = {}
        opened = [_open_part(*run, text, vaes) for run in zip(runs, steps or [None] * len(runs), strict=True)]
        parts, preview, enhance = {}, PreviewSettings(), EnhanceSettings()
        for _, part, data, _ in opened:
            purpose = PreviewStage if isinstance(part.stage, PreviewStage) else EnhancementStage
            if purpose in parts:
                raise ValueError(f'{parts[purpose].name} and {part.name}: hold the same stage; give one of each')
            parts[purpose] = part
            if purpose is PreviewStage:
                preview = PreviewSettings.from_config(part.stage.sampler_config(), data)
            else:
                enhance = EnhanceSettings.from_config(part.stage.sampler_config(), data)
        enhance = dataclasses.replace(enhance, numerics=numerics or enhance.numerics)
        origin = WeightsOrigin(
            checkpoints=tuple(map(str, folders)), steps=tuple(step for step, *_ in opened), text=text
        )
        notes = tuple(f'{part.name}: {note}' for _, part, _, notes in opened for note in notes)
        return cls(parts.get(PreviewStage), parts.get(EnhancementStage), origin, preview, enhance, context, notes)


def _runs(folder: str | Path) -> list[Path]:
    """The runs that this is or holds, in folders or in files."""
    if str(folder) == EMBEDDED:
        return embedded.stages()
    path = Path(folder)
    if path.is_file() or (path / FOLDER).is_dir():
        return [path]
    found = [path / name for name in STAGES if (path / name / FOLDER).is_dir()]
    found += [path / f'{name}{SUFFIX}' for name in STAGES if (path / f'{name}{SUFFIX}').is_file()]
    require(
        found,
        f'{folder}: contains no checkpoints (expected {FOLDER!r} in it, or runs called {" and ".join(STAGES)}, as '
        f'folders or {SUFFIX} files)',
        CheckpointError,
    )
    return found


def _open_part(
    run: Path, step: int | None, text: TextConfig | None, vaes: dict[VAEKey, LazyVAE]
) -> tuple[int, LazyStage, dict[str, Any], list[str]]:
    """A run's checkpoint: its step, its stage, its clips' configuration, and notes. Of arrays nothing is read yet.

    vaes: those of other stages, which this one may share.
    """
    meta, params_of = open_checkpoint(run, step)
    kind, digests = meta['config'].get('stage', {}).get('kind'), meta.get('digests', {})
    if kind not in (known := registry.kinds_of(LatentStage)):
        raise ConfigError(f'{run}: holds stage {kind!r}; a pipeline is made of {" and ".join(known)}')
    config = stage_config_of(run, meta)
    stage = registry.build(config)
    vae = LazyVAE(
        weights.vae_config(config.vae),
        lambda: frozen_vae(config),
        lambda: digests.get('vae') or weights.vae_fingerprint(config.vae),
    )
    vae = vaes.setdefault((config.vae, config.vae_dtype, config.network.latent_channels), vae)
    notes = unverified(config, digests)
    needs_text = isinstance(stage, PreviewStage)
    if text is not None and (needs_text or config.text.encoder):
        encoder = LazyTextEncoder(text.encoder, lambda: open_text_encoder(text))
    elif config.text.encoder:
        found = find_text_encoder(run, config.text, digests.get('text'))
        encoder = LazyTextEncoder(found.encoder, lambda: open_text_encoder(found))
    elif needs_text:
        raise ConfigError(f'{run}: was trained without texts, or names no encoder; name one, {CHOICES}')
    else:
        encoder = None

    def read() -> Any:
        network = ModelDef.from_stage(stage)
        return network.model(**params_of(stage, network))

    return meta['step'], LazyStage(str(run), stage, read, vae, encoder), meta['config'].get('data', {}), notes
