"""How a trained stage is sampled: what may be changed without training it anew. The defaults are the official ones.

A stage's own configuration extends the one for its purpose; so do the settings that a user chooses
(`sampling/settings`).
"""

import dataclasses

from fv_jax.diffusion import guidance, time_grids


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewSamplerConfig:
    """Of a stage that makes a preview of a text.

    Attributes:
      num_steps: steps of the sampler.
      sampler: one of `diffusion.samplers.SAMPLERS`.
      guidance_kind: how the guidance scale depends on the timestep (`diffusion/guidance`).
      guidance_scale: 1 = off, of 'official' 0.
      guidance_exponent: of the kinds 'official' and 'cosine'.
      guidance_batched: one evaluation at twice the batch, or two (less memory).
    """

    num_steps: int = 51
    sampler: str = 'dpmpp_2m_sde'
    guidance_kind: guidance.GuidanceKind = 'official'
    guidance_scale: float = 8.0
    guidance_exponent: int = 5
    guidance_batched: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnhancementSamplerConfig:
    """Of a stage that makes a preview, or any clip, large and detailed.

    Attributes:
      num_steps: steps of the sampler.
      sampler: one of `diffusion.samplers.SAMPLERS`, for flows.
      shift: pushes t towards the source, in training and in the sampler's grid; 1 = off.
      noise_augmentation_timestep: index into the 1000-step noise schedule that the low-res latents are noised to.
      guidance_scale: 1 = off.
      guidance_batched: one evaluation at twice the batch, or two (less memory).
      numerics: 'exact', or 'official' for those of the official bfloat16 run (`diffusion/time_grids`).
      prompt_prefix: what a preview's prompt is preceded by when it is enhanced.
      sample_posterior: draw the low-res latents from the VAE's distribution, as the official code does, when enhancing;
        else take its means, which is what is trained on here.
    """

    num_steps: int = 5
    sampler: str = 'euler'
    shift: float = 2.5
    noise_augmentation_timestep: int = 675
    guidance_scale: float = 13.0
    guidance_batched: bool = True
    numerics: time_grids.Numerics = 'exact'
    prompt_prefix: str = 'medium motion,'
    sample_posterior: bool = True
