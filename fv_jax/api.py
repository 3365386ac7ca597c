"""The Python API: text to preview to high-resolution video."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from fv_jax import weights
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.steps import FOLDER
from fv_jax.core import files
from fv_jax.core.checks import error_context, require
from fv_jax.core.config import ConfigError
from fv_jax.core.paths import StoragePath
from fv_jax.data.degradation.configs import ModelGuidedConfig
from fv_jax.diffusion.time_grids import Numerics
from fv_jax.models.layers import DtypeName
from fv_jax.parallel.mesh import ParallelConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.sampling.lazy_stages import LazyStage, LazyTextEncoder, LazyVAE
from fv_jax.sampling.metadata import WeightsOrigin
from fv_jax.sampling.model_guided import StageDegradation
from fv_jax.sampling.sampling_mesh import SamplingMesh
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
from fv_jax.weights.text_encoders import CHOICES, open_text_encoder, text_fingerprint
from fv_jax.weights.trained_runs import (
    EMBEDDED,
    find_text_encoder,
    is_exported,
    list_unverified,
    load_frozen_vae,
    open_checkpoint,
    open_run,
    read_stage_config,
)

STAGES, SUFFIX = ('stage1', 'stage2'), '.safetensors'  # the runs in a folder that holds both stages

__all__ = ['FlashVideo', 'open_run', 'open_stage_degradation']

VAEKey = tuple[str, DtypeName, int]  # name, dtype, latent channels that the stage expects


class FlashVideo(Pipeline):
    """The two-stage text-to-video pipeline (arXiv 2502.05179):

        fv = fv_jax.FlashVideo.from_official('checkpoints')
        preview = fv.preview('a ladybug moves from left to right over a beach', seed=1)
        preview.save('preview.mp4')
        video = fv.enhance(preview)
        video.save('video.mp4')

    Opening checks every file and loads no network; networks are loaded when they are first used. `preview_settings` and
    `enhance_settings` are the defaults of `preview` and `enhance`. Every path may be a URL, gs:// or s3://.
    """

    @classmethod
    def from_official(
        cls,
        folder: str | StoragePath,
        *,
        numerics: Numerics = 'exact',
        dtype: DtypeName = 'bfloat16',
        text: TextConfig | None = None,
        parallel: ParallelConfig | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> 'FlashVideo':
        """Opens the official release with the official settings.

        Args:
          folder: holds stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl.
          numerics: the default of `EnhanceSettings.numerics`.
          dtype: parameter and compute dtype of both DiTs and T5; bfloat16 is official. The VAE is float32.
          text: a text encoder to use instead of t5-v1_1-xxl, or options for it.
          parallel: the mesh; None for all devices, whose axes follow each batch (`sampling.sampling_mesh`).
          devices: to sample on; None for all devices of all processes.

        Raises:
          FileNotFoundError: the folder does not exist or is incomplete; the message names every missing file.
          ValueError: a file is damaged, is of another model, or does not fit the others.
        """
        there = official_release.open_release(files.resolve_weights(folder), dtype, text)
        name = str(there.vae)
        mesh = SamplingMesh.create(parallel, devices)
        vae = LazyVAE(
            there.vae_config,
            lambda: jit_vae(weights.load_vae(name), mesh.frames_partitioner),
            lambda: weights.vae_fingerprint(name),
        )
        encoder = _lazy_text_encoder(there.text)
        preview, enhancement = (
            LazyStage(
                f'{folder}/{stage.official.file}',
                stage(stage.official.options, there.configs[stage.official.file]),
                there.read[stage.official.file],
                vae,
                encoder,
                mesh,
                stage.official.clip['frames'],
            )
            for stage in (LowRes, SuperRes)
        )
        origin = WeightsOrigin(official=str(folder), dtype=dtype, text=text)
        return cls(preview, enhancement, origin, PreviewSettings(), EnhanceSettings(numerics=numerics), mesh)

    @classmethod
    def from_origin(
        cls,
        origin: WeightsOrigin,
        *,
        parallel: ParallelConfig | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> 'FlashVideo':
        """Opens the weights that generation metadata name. Raises what `from_official` and `from_checkpoint` raise."""
        where = {'text': origin.text, 'parallel': parallel, 'devices': devices}
        if origin.official is not None:
            return cls.from_official(origin.official, dtype=origin.dtype, **where)
        return cls.from_checkpoint(*origin.checkpoints, steps=origin.steps or None, **where)

    @classmethod
    def from_checkpoint(
        cls,
        *folders: str | StoragePath,
        steps: Sequence[int] | None = None,
        numerics: Numerics | None = None,
        text: TextConfig | None = None,
        parallel: ParallelConfig | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> 'FlashVideo':
        """Opens trained, converted or exported stages with the settings of their configs.

        Args:
          folders: runs, which are work directories, exported folders or exported files; or one folder that holds two
            of them, named stage1 and stage2; or 'embedded', the small weights in the package. With one stage alone,
            the method of the other raises ValueError.
          steps: the checkpoint step of each run, in order; None for the newest.
          numerics: as in `from_official`; None for that of the config.
          text: the text encoder, instead of the one that stage 1 names, if any. A stage 2 that names none was trained
            without text and gets none.
          parallel, devices: as in `from_official`.

        Raises:
          CheckpointError: no checkpoint, or a damaged one.
          ConfigError, ValueError: not a stage of a pipeline, the same stage twice, or no text encoder is named.
          FileNotFoundError: the VAE or the text encoder that a checkpoint names does not exist.
        """
        runs = [run for folder in folders for run in _runs(folder)]
        if steps is not None and len(steps) != len(runs):
            raise ValueError(f'steps: {len(steps)} for {len(runs)} run(s), {", ".join(map(str, runs))}')
        vaes: dict[VAEKey, LazyVAE] = {}
        mesh = SamplingMesh.create(parallel, devices)
        opened = [_open_stage(*run, text, vaes, mesh) for run in zip(runs, steps or [None] * len(runs), strict=True)]
        parts, preview, enhance = {}, PreviewSettings(), EnhanceSettings()
        for _, part, data, _ in opened:
            purpose = PreviewStage if isinstance(part.stage, PreviewStage) else EnhancementStage
            if purpose in parts:
                raise ValueError(
                    f'{parts[purpose].name} and {part.name}: both contain the same stage; pass one of each'
                )
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
        return cls(parts.get(PreviewStage), parts.get(EnhancementStage), origin, preview, enhance, mesh, notes)


def open_stage_degradation(config: ModelGuidedConfig, text_digest: str | None) -> StageDegradation:
    """Opens the stage of model-guided degradations on the devices of this process. Its network is loaded later.

    Args:
      config: names the stage.
      text_digest: the fingerprint of the encoder of the clips' captions; None without any.

    Raises:
      ConfigError: the stage cannot be opened or does not generate previews, or its sampler has no state of such a noise
        level.
    """
    name, devices = config.checkpoint, jax.local_devices()
    with error_context('model_guided.checkpoint: ', (CheckpointError, FileNotFoundError, ValueError), ConfigError):
        is_official = name != EMBEDDED and (files.resolve_weights(name) / LowRes.official.file).is_file()
        opened = FlashVideo.from_official if is_official else FlashVideo.from_checkpoint
        preview = opened(name, devices=devices).stage1
    return StageDegradation.create(preview, config, text_digest)


def _runs(folder: str | StoragePath) -> list[StoragePath]:
    """Returns the runs that a path is or holds, folders or exported files. Raises CheckpointError for none."""
    if str(folder) == EMBEDDED:
        return embedded.stages()
    path = files.resolve_weights(folder)
    if is_exported(path) or (path / FOLDER).is_dir():
        return [path]
    require(path.exists(), f'{folder}: does not exist', CheckpointError)
    found = [path / name for name in STAGES if (path / name / FOLDER).is_dir() or is_exported(path / name)]
    found += [path / f'{name}{SUFFIX}' for name in STAGES if (path / f'{name}{SUFFIX}').is_file()]
    require(
        found,
        f'{folder}: contains no checkpoints (expected {FOLDER!r} in it, or runs called {" and ".join(STAGES)}, as '
        f'folders or {SUFFIX} files)',
        CheckpointError,
    )
    return found


def _open_stage(
    run: StoragePath, step: int | None, text: TextConfig | None, vaes: dict[VAEKey, LazyVAE], mesh: SamplingMesh
) -> tuple[int, LazyStage, dict[str, Any], list[str]]:
    """Opens a stage of a run without reading arrays.

    Args:
      run: the run.
      step: of the checkpoint; None for the newest.
      text: overrides the text encoder that the run names.
      vaes: VAEs of other stages, which are shared; a new one is added.
      mesh: what the stage is sampled on.

    Returns:
      The step, the stage, the data config of the run, and notes for the user.
    """
    meta, params_of = open_checkpoint(run, step)
    kind, digests = meta['config'].get('stage', {}).get('kind'), meta.get('digests', {})
    if kind not in (known := registry.find_kinds(LatentStage)):
        raise ConfigError(f'{run}: holds stage {kind!r}; a pipeline has stages of {", ".join(known)}')
    config = read_stage_config(run, meta)
    stage = registry.build(config)
    vae = LazyVAE(
        weights.vae_config(config.vae),
        lambda: load_frozen_vae(config, mesh.frames_partitioner),
        lambda: weights.vae_fingerprint(config.vae),
    )
    vae = vaes.setdefault((config.vae, config.vae_dtype, config.network.latent_channels), vae)
    notes = list_unverified(config, digests)
    needs_text = isinstance(stage, PreviewStage)
    if text is not None and (needs_text or config.text.encoder):
        encoder = _lazy_text_encoder(text)
    elif config.text.encoder:
        encoder = _lazy_text_encoder(find_text_encoder(run, config.text, digests.get('text')))
    elif needs_text:
        raise ConfigError(f'{run}: names no text encoder; pass one of {CHOICES}')
    else:
        encoder = None

    def read(partitioner: Partitioner) -> nnx.Module:
        network = ModelDef.from_stage(stage)
        return network.model(**params_of(stage, network, partitioner))

    data = meta['config'].get('data', {})
    return meta['step'], LazyStage(str(run), stage, read, vae, encoder, mesh, data.get('frames')), data, notes


def _lazy_text_encoder(config: TextConfig) -> LazyTextEncoder:
    return LazyTextEncoder(config.encoder, lambda: open_text_encoder(config), lambda: text_fingerprint(config).digest)
