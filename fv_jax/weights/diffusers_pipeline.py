"""Writes a stage as the folder of a diffusers pipeline: network, VAE, scheduler and the file of our pipeline classes.

    model_index.json    the class of the pipeline, its components and settings
    pipeline.py         that class; `from_pretrained(FOLDER, trust_remote_code=True)` reads it
    transformer/        `CogVideoXTransformer3DModel`, for one size and number of frames (`layouts/diffusers_export`)
    vae/                `AutoencoderKLCogVideoX`, with the stage's scale factor
    scheduler/          `scheduler_config.json`

The text encoder is not copied: T5 XXL is the same for every stage, and others are none of diffusers'. A user passes
it to `from_pretrained`, or embeddings to the pipeline.
"""

import dataclasses
import pathlib

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.protocol import DiffusersPipeline
from fv_jax.weights import text_encoders
from fv_jax.weights.layouts import diffusers_export, official_dit
from fv_jax.weights.parameters import Parameters

PIPELINE = 'pipeline.py'
INDEX = 'model_index.json'
TRANSFORMER, VAE, SCHEDULER = 'transformer', 'vae', 'scheduler'
_SOURCE = pathlib.Path(__file__).parent / 'torch_files' / PIPELINE
ENCODE_CHUNK = 16  # of the pipeline: clips of 1 + 16 k frames pass its VAE in the chunks of ours


@dataclasses.dataclass(frozen=True)
class DiffusersExport:
    """A stage to export.

    Attributes:
      stage: its configuration.
      values: the parameters of its network, LoRA included.
      vae_config, vae_values: of the VAE whose latents it works on.
      size: (frames, height, width) of the video.
      dtype: of the network's tensors; None keeps each parameter's own. The VAE's stay float32.
    """

    stage: registry.StageConfig
    values: Parameters
    vae_config: VAEConfig
    vae_values: Parameters
    size: tuple[int, int, int]
    dtype: str | None

    def pipeline(self) -> DiffusersPipeline:
        """Returns how diffusers samples the stage. Raises ConfigError where it cannot."""
        found = registry.build(self.stage).diffusers_pipeline()
        assert found is not None, 'a VAE is no pipeline'
        return found

    def check(self) -> None:
        """Raises ConfigError or ValueError for a stage that cannot be exported, before anything is written."""
        self.pipeline()
        registry.latent_spec(self.stage, self.vae_config).check_clip('--size', *self.size)
        require(isinstance(self.stage.network, DiTConfig), 'the network is not a DiT')
        diffusers_export.check_transformer(self.stage.network)

    def notes(self) -> list[str]:
        """Returns what differs from sampling with fv_jax, a line each."""
        notes, frames = list(self.pipeline().notes), self.size[0]
        if frames > ENCODE_CHUNK and frames % ENCODE_CHUNK != 1:
            notes.append(
                f'the VAE encodes {frames} frames in other chunks than fv_jax, whose group norms differ a little; '
                f'1 + {ENCODE_CHUNK} k frames have the same'
            )
        return notes


def write_pipeline(folder: StoragePath, export: DiffusersExport) -> None:
    """Writes a pipeline folder. Raises what `DiffusersExport.check` does.

    Args:
      folder: exists.
      export: the stage.
    """
    export.check()
    pipeline, latent_spec = export.pipeline(), registry.latent_spec(export.stage, export.vae_config)
    values, network = official_dit.merge_lora_parameters(export.values, export.stage.network)
    settings = diffusers_export.TransformerSettings(
        latents=latent_spec.latent_size(*export.size),
        video_frames=export.size[0],
        temporal=latent_spec.temporal,
        text_length=export.stage.options.text_length,
        noise_augmentation_timestep=pipeline.noise_augmentation_timestep,
        predicts_opposite=pipeline.predicts_opposite,
    )
    diffusers_export.write_transformer(folder / TRANSFORMER, values, network, settings, export.dtype)
    scale_factor = export.stage.options.scale_factor
    diffusers_export.write_vae(folder / VAE, export.vae_values, export.vae_config, scale_factor)
    files.make_folder(folder / SCHEDULER)
    scheduler = {**pipeline.scheduler, '_diffusers_version': diffusers_export.VERSION}
    files.write_json(folder / SCHEDULER / 'scheduler_config.json', scheduler)
    files.write_text(folder / PIPELINE, _SOURCE.read_text(encoding='utf-8'))
    files.write_json(folder / INDEX, _model_index(pipeline))


def _model_index(pipeline: DiffusersPipeline) -> dict[str, object]:
    return {
        '_class_name': [PIPELINE.removesuffix('.py'), pipeline.name],
        '_diffusers_version': diffusers_export.VERSION,
        'scheduler': ['diffusers', pipeline.scheduler['_class_name']],
        'text_encoder': [None, None],
        'tokenizer': [None, None],
        'transformer': ['diffusers', 'CogVideoXTransformer3DModel'],
        'vae': ['diffusers', 'AutoencoderKLCogVideoX'],
        **pipeline.settings,
    }


def usage(export: DiffusersExport) -> str:
    """Returns the code of the model card."""
    pipeline, dtype = export.pipeline(), export.dtype or export.stage.network.param_dtype
    call, components = pipeline.call, ''
    if text_encoders.is_folder_name(export.stage.text):
        imports = 'from transformers import T5EncoderModel, T5Tokenizer\n'
        components = _T5.format(dtype=dtype)
    else:
        length, width = export.stage.options.text_length, export.stage.network.text_dim
        imports = ''
        call = call.replace('prompt', f'prompt_embeds=torch.zeros(1, {length}, {width})', 1)
    return _USAGE.format(imports=imports, dtype=dtype, components=components, call=call)


_USAGE = """\
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
{imports}
pipe = DiffusionPipeline.from_pretrained(
    'FOLDER',
    trust_remote_code=True,  # pipeline.py
    torch_dtype=torch.{dtype},
{components})
video = pipe({call}).frames[0]
export_to_video(video, 'video.mp4')
"""
_T5 = """\
    text_encoder=T5EncoderModel.from_pretrained('T5', torch_dtype=torch.{dtype}),
    tokenizer=T5Tokenizer.from_pretrained('T5'),
"""
