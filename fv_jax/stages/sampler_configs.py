"""Sampler configurations of stages: what can be changed without training. The defaults are the official ones.

The configuration of a stage extends one of these; so do the settings that a user chooses (`sampling/settings`).
"""

import dataclasses

from fv_jax.diffusion import guidance, time_grids


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewSamplerConfig:
    """How a preview stage is sampled.

    Attributes:
      num_steps: steps of the sampler.
      sampler: one of `diffusion.samplers.SAMPLERS`.
      guidance_kind: how the guidance scale depends on the timestep (`diffusion/guidance`).
      guidance_scale: 1 is no guidance; of the kind 'official', 0.
      guidance_exponent: of the kinds 'official', 'cosine' and 'decreasing'.
      guidance_batched: one evaluation at twice the batch size, or two evaluations, which take less memory.
    """

    num_steps: int = 51
    sampler: str = 'dpmpp_2m_sde'
    guidance_kind: guidance.GuidanceKind = 'official'
    guidance_scale: float = 8.0
    guidance_exponent: int = 5
    guidance_batched: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnhancementSamplerConfig:
    """How an enhancement stage is sampled.

    Attributes:
      num_steps: steps of the sampler.
      sampler: one of `diffusion.samplers.SAMPLERS`, for flows.
      shift: of times, above 1 towards the source, in training and in the sampler's grid; 1 is none.
      noise_augmentation_timestep: the noise level of the low-res latents, an index into the 1000-step noise schedule.
      guidance_scale: 1 is no guidance.
      guidance_batched: one evaluation at twice the batch size, or two evaluations, which take less memory.
      numerics: 'exact', or 'official' for those of the official bfloat16 run (`diffusion/time_grids`).
      prompt_prefix: precedes the prompt of a preview when it is enhanced.
      sample_posterior: whether enhancing samples the low-res latents from the VAE's posterior, as the official code
        does; otherwise they are its means, as in training.
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
