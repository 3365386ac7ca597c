"""The base classes of stages that train a DiT on the latents of a frozen VAE.

A `PreviewStage` generates latents from text, an `EnhancementStage` high-res latents from low-res ones. Sampling,
planning and evaluation require one or the other, never a certain stage.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion.samplers import SAMPLERS
from fv_jax.diffusion.trajectory import Trajectory
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAParam
from fv_jax.stages.noise import SamplingNoise
from fv_jax.stages.protocol import (
    Batch,
    BatchSize,
    DiffusersPipeline,
    Encoder,
    ExportedFunction,
    OfficialStage,
    Program,
    Shape,
)
from fv_jax.stages.sampler_configs import EnhancementSamplerConfig, PreviewSamplerConfig

C = TypeVar('C', PreviewSamplerConfig, EnhancementSamplerConfig)


@dataclasses.dataclass(frozen=True)
class LatentStage(abc.ABC, Generic[C]):
    """A stage whose network is a DiT.

    Attributes:
      config: of the stage; it extends `sampler_class`.
      network: the config of the DiT.
      encoder: of the frozen VAE, for batches that contain video.
    """

    config: Any
    network: DiTConfig
    encoder: Encoder | None = None

    latents_of: ClassVar[Mapping[str, str]] = {'high_res_BFHWC': 'z_high_BFHWC'}
    strategy: ClassVar[str] = 'fsdp'
    takes_average: ClassVar[bool] = False
    is_distilled: ClassVar[bool] = False
    official: ClassVar[OfficialStage | None] = None
    pipeline_tag: ClassVar[str]
    sampler_class: ClassVar[type]

    def __post_init__(self):
        embeds, wanted = self.network.embed_interval, self.is_distilled
        wrong = f'network.embed_interval={embeds}: must be {wanted}; flow maps embed intervals, no other stage does'
        require(embeds == wanted, wrong, ConfigError)

    def init(self, rngs: nnx.Rngs) -> DiT:
        return DiT(self.network, rngs=rngs)

    def trainable(self) -> Filter:
        return nnx.Param if self.network.lora is None else LoRAParam

    def adapt_initial_params(self, model: DiT) -> None:
        pass

    # --- batches ---

    def needs_text(self) -> bool:
        """Whether the stage cannot be trained without text."""
        return False

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.config.text_length, self.network.text_dim

    def inputs(self, size: BatchSize) -> dict[str, Shape]:
        latents = (size.examples, *size.latents, self.network.latent_channels)
        return {name: latents for name in self.latents_of.values()} | {'text_BLD': (size.examples, *self.text_shape)}

    def encode(self, batch: Batch) -> Batch:
        """Raises ValueError for a batch that contains video if the stage has no encoder."""
        found = [name for name in self.latents_of if name in batch]
        if found and self.encoder is None:
            raise ValueError(
                f'the batch holds {", ".join(found)}, but this stage has no encoder; pass one to `registry.build`'
            )
        rest = {name: value for name, value in batch.items() if name not in found}
        return rest | {self.latents_of[name]: self.encoder(batch[name]) for name in found}

    def text(self, batch: Batch) -> jax.Array:
        """Returns the text embeddings of a batch (B, L, D), float32; zeros if it has none."""
        if 'text_BLD' in batch:
            return batch['text_BLD'].astype(jnp.float32)
        return self.zero_text(next(iter(batch.values())).shape[0])

    def zero_text(self, examples: int) -> jax.Array:
        """Returns the unconditional input (B, L, D): zeros."""
        return jnp.zeros((examples, *self.text_shape), jnp.float32)

    def scale_latents(self, z: jax.Array) -> jax.Array:
        """Multiplies unscaled latents by the scale factor, as float32."""
        return self.config.scale_factor * z.astype(jnp.float32)

    def unscale_latents(self, x: jax.Array) -> jax.Array:
        """Inverts `scale_latents`."""
        return x / self.config.scale_factor

    # --- sampling ---

    def sampler_config(self) -> C:
        """Returns how the stage is sampled; `with_sampler_config` changes it."""
        fields = dataclasses.fields(self.sampler_class)
        return self.sampler_class(**{field.name: getattr(self.config, field.name) for field in fields})

    def with_sampler_config(self, config: C) -> Self:
        """Returns the stage with other sampler settings: `config`, or a class that extends it. Raises ConfigError."""
        changes = {field.name: getattr(config, field.name) for field in dataclasses.fields(self.sampler_class)}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    @abc.abstractmethod
    def sampling_trajectory(
        self, model: DiT, inputs: Batch, noise: SamplingNoise, shape: Shape, *, context: ParallelContext
    ) -> Trajectory:
        """Returns the trajectory of sampling.

        Args:
          model: the network.
          inputs: `text_BLD`, zeros of which are the unconditional input; of an enhancement stage `z_low_BFHWC` too, the
            unscaled latents of the upsampled video.
          noise: what the trajectory starts from, and the noise of the sampler.
          shape: (B, F, H, W, C) of the latents.
          context: the parallel context.

        Returns:
          The trajectory to unscaled latents of `shape`, float32.
        """

    @abc.abstractmethod
    def is_guided(self) -> bool:
        """Whether guidance changes the prediction."""

    @property
    def num_sampler_steps(self) -> int:
        """The number of steps that the sampler takes."""
        return self.config.num_steps

    def num_function_evaluations(self) -> int:
        """Counts the evaluations of the network per sample (NFE); a guided one counts twice."""
        evaluations = self.num_sampler_steps * SAMPLERS[self.config.sampler].evaluations
        return 2 * evaluations if self.is_guided() else evaluations

    # --- descriptions ---

    def programs(self, size: BatchSize) -> list[Program]:
        """Describes the training step, and the encoding of each video of a clip."""
        video = (size.examples, *size.video, 3)
        step = Program('training step', 'stage', self.inputs(size))
        return [step, Program('VAE encode', 'encoder', {'video_BFHWC': video}, len(self.latents_of))]

    def exported_functions(self, size: BatchSize, *, context: ParallelContext) -> Sequence[ExportedFunction]:
        return ()

    @abc.abstractmethod
    def diffusers_pipeline(self) -> DiffusersPipeline:
        """Returns how diffusers samples the stage. Raises ConfigError where it cannot."""


@dataclasses.dataclass(frozen=True)
class PreviewStage(LatentStage[PreviewSamplerConfig]):
    """A stage that generates latents from text.

    A batch holds unscaled latents `z_high_BFHWC`, or `high_res_BFHWC`, videos of the preview's size in [-1, 1] for
    `encoder`; and `text_BLD` if there is text.

    Attributes:
      first_state: the state that sampling begins at, of `noise_levels`. From 1 on the inputs of `sampling_trajectory`
        hold `z_high_BFHWC`, which is noised to that state.
    """

    first_state: int = 0

    sampler_class = PreviewSamplerConfig
    pipeline_tag = 'text-to-video'

    @abc.abstractmethod
    def noise_levels(self) -> np.ndarray:
        """Returns the noise level of each state of the sampler, (n + 1,), decreasing from 1, noise, to 0, data.

        A level is the share of the noise's standard deviation in that of noise and data (`prediction_types`).
        """

    @property
    def num_sampler_steps(self) -> int:
        return self.config.num_steps - self.first_state

    def without_guidance(self) -> Self:
        """Returns the stage, sampled without guidance."""
        config = dataclasses.replace(self.sampler_config(), guidance_kind='constant', guidance_scale=1.0)
        return self.with_sampler_config(config)


class NoisedPair(NamedTuple):
    """A noised batch of an enhancement stage; latents are scaled. t is 1 at the source, 0 at the data."""

    source_BFHWC: jax.Array
    data_BFHWC: jax.Array
    text_BLD: jax.Array
    t_B: jax.Array
    noise_augmentation_timestep_B: jax.Array


class EnhancementStage(LatentStage[EnhancementSamplerConfig]):
    """A stage that generates high-res latents from low-res ones.

    A batch holds unscaled latents `z_high_BFHWC` and `z_low_BFHWC`, or `high_res_BFHWC` and `low_res_BFHWC`, videos of
    one size in [-1, 1] for `encoder`; and `text_BLD` if there is text.
    """

    latents_of: ClassVar[Mapping[str, str]] = {'high_res_BFHWC': 'z_high_BFHWC', 'low_res_BFHWC': 'z_low_BFHWC'}
    sampler_class = EnhancementSamplerConfig
    pipeline_tag = 'video-to-video'

    @abc.abstractmethod
    def noise_augmentation_timesteps(self, latent_frames: int) -> tuple[int, int]:
        """Returns (lowest, highest) that training draws from, for clips of so many latent frames."""

    @abc.abstractmethod
    def noise_at(
        self, batch: Batch, keys_B: jax.Array, t_B: jax.Array, noise_augmentation_timestep_B: jax.Array
    ) -> NoisedPair:
        """Noises a batch at given times, with all of its text.

        Args:
          batch: with latents.
          keys_B: one key for each example.
          t_B: times in [0, 1].
          noise_augmentation_timestep_B: indices into the noise schedule.
        """

    def encode(self, batch: Batch) -> Batch:
        """Raises ValueError for a batch without degraded clips, or with video if the stage has no encoder."""
        encoded = super().encode(batch)
        if 'z_low_BFHWC' not in encoded:
            raise ValueError(
                'the clips have no degraded variants: prepare them with latents.num_degraded_variants=1 or more'
            )
        return encoded

    def without_guidance(self) -> Self:
        """Returns the stage, sampled without guidance."""
        return self.with_sampler_config(dataclasses.replace(self.sampler_config(), guidance_scale=1.0))
