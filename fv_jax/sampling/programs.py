"""Jitted functions of both stages: a step of the sampler is one program, and so is each chunk of the VAE.

The loop over steps is Python's. It waits for every step, so that its progress is true and an interrupt stops it there.

    z_preview = generate(text, noise)                                stage 1: its sampler and guidance   model guide 5.2
    preview   = clip(decode(z_preview), -1, 1)                       official chunks                     model guide 4.3
    x         = resize(preview)                                      antialiased bilinear, never rounded model guide 5.4
    z_low     = mean or sample of the VAE's latents of x             official chunks                     model guide 4
    z_high    = enhance_latents(z_low, text, noise)                  noise augmentation, stage 2         model guide 5.3
    video     = clip(decode(z_high), -1, 1)                          optionally in slices of the width   model guide 4.3

Encode and decode of the large video take whole frames or tiles of them (`models/vae_tiling`).

All latents are unscaled, as the VAE encodes them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.core.resize import resize
from fv_jax.diffusion.trajectory import Trajectory
from fv_jax.models.patch import patch_grid
from fv_jax.models.vae import sample_latents, split_moments
from fv_jax.models.vae_tiling import Tiling
from fv_jax.parallel import arrays
from fv_jax.parallel.rules import Partitioner
from fv_jax.parallel.sharding import parameter_shardings
from fv_jax.sampling.noise import SeededNoise
from fv_jax.sampling.progress import OnStep, ignore_steps
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.latent_stage import EnhancementStage, PreviewStage
from fv_jax.stages.noise import EnhanceNoise, PreviewNoise, SamplingNoise
from fv_jax.stages.protocol import Batch

S = TypeVar('S', PreviewStage, EnhancementStage)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedStage(Generic[S]):
    """A stage and its network, split for jit. Networks of one graphdef share executables, so that reloading compiles
    nothing.

    Attributes:
      stage: without an encoder.
      graphdef, state: of the network, whose weights lie on the devices of `mesh`.
      partitioner: of the weights.
      mesh: what the stage is sampled on.
    """

    stage: S
    graphdef: Any
    state: nnx.State
    partitioner: Partitioner
    mesh: SamplingMesh

    @classmethod
    def create(cls, stage: S, load: Callable[[Partitioner], nnx.Module], mesh: SamplingMesh) -> 'LoadedStage[S]':
        """Loads the network of a stage.

        Args:
          stage: the stage.
          load: loads the network onto the mesh of a partitioner.
          mesh: what the stage is sampled on.
        """
        partitioner = mesh.network_partitioner(stage)
        # The stage is a static argument of jitted functions, whose cache would keep the encoder's weights alive.
        return cls(dataclasses.replace(stage, encoder=None), *nnx.split(load(partitioner)), partitioner, mesh)

    @classmethod
    def abstract(cls, stage: S, mesh: SamplingMesh) -> 'LoadedStage[S]':
        """Returns a stage that can be lowered only: with ShapeDtypeStructs in place of weights."""

        def load(partitioner: Partitioner) -> nnx.Module:
            graphdef, state = nnx.split(abstract_module(stage.init))
            shardings = parameter_shardings(partitioner, state)
            nnx.replace_by_pure_dict(state, arrays.put_sharded(nnx.to_pure_dict(state), shardings))
            return nnx.merge(graphdef, state)

        return cls.create(stage, load, mesh)

    def with_stage(self, stage: S) -> 'LoadedStage[S]':
        """Returns the same network with other settings of the stage."""
        return dataclasses.replace(self, stage=dataclasses.replace(stage, encoder=None))

    @property
    def rows(self) -> int:
        """The rows of the network's batch for each example: 2 where both branches of guidance are one batch."""
        return 2 if self.stage.is_guided() and self.stage.config.guidance_batched else 1

    def parallel_context(self, shape_BFHWC: tuple[int, ...]) -> ParallelContext:
        """Returns the parallel context of the network for latents of this shape, in the rows of its batch."""
        grid = patch_grid(shape_BFHWC, self.stage.network.patch_size)
        text_length, _ = self.stage.text_shape
        return self.mesh.parallel_context(self.partitioner, shape_BFHWC[0], text_length + math.prod(grid))


def generate(
    stage1: LoadedStage[PreviewStage],
    text_BLD: jax.Array,
    noise: PreviewNoise,
    latent_size: tuple[int, int, int],
    on_step: OnStep = ignore_steps,
) -> jax.Array:
    """Samples the latents of previews with stage 1.

    Args:
      stage1: the loaded stage.
      text_BLD: text embeddings.
      noise: initial latents and sampler noise.
      latent_size: (F', H', W').
      on_step: called after every step. What it raises ends sampling.

    Returns:
      float32 (B, F', H', W', C), unscaled.
    """
    shape = (text_BLD.shape[0], *latent_size, stage1.stage.network.latent_channels)
    return _sample(stage1, {'text_BLD': text_BLD}, noise, shape, on_step)


def denoise_latents(
    stage1: LoadedStage[PreviewStage],
    z_BFHWC: jax.Array,
    text_BLD: jax.Array | None,
    noise: PreviewNoise,
    first_state: int,
    on_step: OnStep = ignore_steps,
) -> jax.Array:
    """Noises latents to a state of stage 1's sampler, and samples from there (SDEdit, arXiv:2108.01073).

    Args:
      stage1: the loaded stage.
      z_BFHWC: latents, unscaled.
      text_BLD: text embeddings; None for all zeros, without guidance.
      noise: what is added, and the noise of the sampler.
      first_state: the state, of `PreviewStage.noise_levels`; the last one returns the latents as they are.
      on_step: called after every step. What it raises ends sampling.

    Returns:
      float32, of the shape of `z_BFHWC`, unscaled.
    """
    stage = dataclasses.replace(stage1.stage, first_state=first_state)
    if not stage.num_sampler_steps:
        return z_BFHWC.astype(jnp.float32)
    if text_BLD is None:
        text_BLD, stage = stage1.mesh.replicate(stage.zero_text(z_BFHWC.shape[0])), stage.without_guidance()
    inputs = {'z_high_BFHWC': z_BFHWC, 'text_BLD': text_BLD}
    return _sample(stage1.with_stage(stage), inputs, noise, z_BFHWC.shape, on_step)


def enhance_latents(
    stage2: LoadedStage[EnhancementStage],
    z_low_BFHWC: jax.Array,
    text_BLD: jax.Array | None,
    noise: EnhanceNoise,
    on_step: OnStep = ignore_steps,
) -> jax.Array:
    """Samples high-resolution latents with stage 2.

    Args:
      stage2: the loaded stage.
      z_low_BFHWC: latents of the video after resizing, unscaled.
      text_BLD: text embeddings; None for all zeros.
      noise: the noise augmentation.
      on_step: called after every step. What it raises ends sampling.

    Returns:
      float32, of the shape of `z_low_BFHWC`, unscaled.
    """
    if text_BLD is None:
        text_BLD = stage2.mesh.replicate(np.zeros((z_low_BFHWC.shape[0], *stage2.stage.text_shape), np.float32))
        stage2 = without_text(stage2)
    inputs = {'z_low_BFHWC': z_low_BFHWC, 'text_BLD': text_BLD}
    return _sample(stage2, inputs, noise, z_low_BFHWC.shape, on_step)


def without_text(stage2: LoadedStage[EnhancementStage]) -> LoadedStage[EnhancementStage]:
    """Returns the stage without guidance, which would combine two equal velocities: all-zero text is unconditional."""
    return stage2.with_stage(stage2.stage.without_guidance())


def lower_preview_step(stage1: LoadedStage[PreviewStage], shape_BFHWC: tuple[int, ...]) -> jax.stages.Lowered:
    """Lowers the step of `generate` for latents of a shape. stage1: without weights."""
    return _lower_step(stage1, shape_BFHWC, {})


def lower_enhance_step(
    stage2: LoadedStage[EnhancementStage], shape_BFHWC: tuple[int, ...], *, text: bool
) -> jax.stages.Lowered:
    """Lowers the step of `enhance_latents`.

    Args:
      stage2: without weights.
      shape_BFHWC: of the latents.
      text: whether there is text.
    """
    # As the VAE's encoder leaves them.
    partitioner = stage2.mesh.frames_partitioner.fold_batch(shape_BFHWC[0])
    sharding = partitioner.frames_sharding(shape_BFHWC, 1, 'latents')
    z_low = jax.ShapeDtypeStruct(shape_BFHWC, jnp.float32, sharding=sharding)
    return _lower_step(stage2 if text else without_text(stage2), shape_BFHWC, {'z_low_BFHWC': z_low})


def _sample(
    loaded: LoadedStage,
    inputs: Batch,
    noise: SamplingNoise,
    shape: tuple[int, ...],
    on_step: OnStep,
) -> jax.Array:
    """Samples latents of `shape` step by step."""
    arguments, static = (loaded.state, inputs, noise), _static_arguments(loaded, shape)
    state = _start(*arguments, *static)
    num_steps = loaded.stage.num_sampler_steps
    for i in range(num_steps):
        state = jax.block_until_ready(_advance(*arguments, *static, state, i))
        on_step(i + 1, num_steps)
    return _finish(*arguments, *static, state)


def _lower_step(loaded: LoadedStage, shape: tuple[int, ...], inputs: Batch) -> jax.stages.Lowered:
    """Lowers the program that each step of a sampler runs.

    Args:
      loaded: the stage, with ShapeDtypeStructs in place of weights.
      shape: of the latents.
      inputs: besides text; ShapeDtypeStructs with the shardings of what is sampled from.
    """
    text = jax.ShapeDtypeStruct((shape[0], *loaded.stage.text_shape), jnp.float32)
    text, noise = loaded.mesh.replicate((text, SeededNoise(jax.ShapeDtypeStruct(shape[:1], jnp.uint32))))
    arguments, static = (loaded.state, {'text_BLD': text, **inputs}, noise), _static_arguments(loaded, shape)
    state = loaded.mesh.replicate(_start.eval_shape(*arguments, *static))
    return _advance.lower(*arguments, *static, state, 0)


def _static_arguments(loaded: LoadedStage, shape: tuple[int, ...]) -> tuple[Any, ...]:
    context = loaded.parallel_context((loaded.rows * shape[0], *shape[1:]))
    return loaded.stage, loaded.graphdef, shape, context, loaded.partitioner.replicated


def _trajectory(params, inputs, noise, stage, graphdef, shape, context, replicated) -> Trajectory:
    del replicated
    return stage.sampling_trajectory(nnx.merge(graphdef, params), inputs, noise, shape, context=context)


_STATIC = (3, 4, 5, 6, 7)  # of `_trajectory`


# Every device has the whole state between two steps, so that all steps are one executable: it is small.
@functools.partial(jax.jit, static_argnums=_STATIC)
def _start(*arguments):
    return jax.lax.with_sharding_constraint(_trajectory(*arguments).start, arguments[-1])


@functools.partial(jax.jit, static_argnums=_STATIC)
def _advance(params, inputs, noise, stage, graphdef, shape, context, replicated, state, i):
    # XLA removes what leads to the first state.
    trajectory = _trajectory(params, inputs, noise, stage, graphdef, shape, context, replicated)
    return jax.lax.with_sharding_constraint(trajectory.advance(state, i), replicated)


@functools.partial(jax.jit, static_argnums=_STATIC)
def _finish(params, inputs, noise, stage, graphdef, shape, context, replicated, state):
    trajectory = _trajectory(params, inputs, noise, stage, graphdef, shape, context, replicated)
    return jax.lax.with_sharding_constraint(trajectory.finish(state), replicated)


def low_res_latents(
    vae: JittedVAE,
    video_BFHWC: jax.Array,
    size: tuple[int, int],
    noise: EnhanceNoise | None = None,
    tiling: Tiling | None = None,
    ratio: float | None = None,
) -> jax.Array:
    """Resizes a video and encodes it.

    Args:
      vae: the VAE of stage 2.
      video_BFHWC: in [-1, 1].
      size: (height, width) in pixels after resizing.
      noise: samples the VAE posterior; None takes its mean.
      tiling: of the VAE; None for whole frames.
      ratio: as in `core.resize`.

    Returns:
      Latents, unscaled.
    """
    moments = vae.encode_moments(_resize_sharded(vae, video_BFHWC, size, ratio), tiling)
    return split_moments(moments)[0] if noise is None else _sample_posterior(moments, noise)


@jax.jit
def _sample_posterior(moments_BFHWC: jax.Array, noise: EnhanceNoise) -> jax.Array:
    *dims, channels = moments_BFHWC.shape
    return sample_latents(moments_BFHWC, noise.posterior((*dims, channels // 2)))


def _resize_sharded(vae: JittedVAE, video_BFHWC: jax.Array, size: tuple[int, int], ratio: float | None) -> jax.Array:
    sharding = _resized_sharding(vae, video_BFHWC.shape, size)
    if sharding is not None:
        video_BFHWC = jax.device_put(video_BFHWC, _whole(sharding))
    return _resize(video_BFHWC, *size, sharding, ratio)


def lower_resize(vae: JittedVAE, video_BFHWC: jax.ShapeDtypeStruct, size: tuple[int, int]) -> jax.stages.Lowered:
    """Lowers the program that resizes a video of a shape before a VAE over a mesh encodes it."""
    sharding = _resized_sharding(vae, video_BFHWC.shape, size)
    video = jax.ShapeDtypeStruct(video_BFHWC.shape, video_BFHWC.dtype, sharding=_whole(sharding))
    return _resize.lower(video, *size, sharding, None)


def _resized_sharding(vae: JittedVAE, shape_BFHWC: tuple[int, ...], size: tuple[int, int]) -> NamedSharding | None:
    batch, frames, *_, channels = shape_BFHWC
    return vae.video_sharding((batch, frames, *size, channels))


def _whole(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of a small video: columns of it and of the large one do not divide alike."""
    return NamedSharding(sharding.mesh, PartitionSpec())


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _resize(
    video_BFHWC: jax.Array, height: int, width: int, sharding: NamedSharding | None, ratio: float | None
) -> jax.Array:
    resized = resize(video_BFHWC, height, width, ratio=ratio)
    return resized if sharding is None else jax.lax.with_sharding_constraint(resized, sharding)


def decode_latents(
    vae: JittedVAE, z_BFHWC: jax.Array, tiling: Tiling | None = None, *, width_slices: int = 1
) -> jax.Array:
    """Decodes unscaled latents to video (B, F, H, W, 3) in [-1, 1], float32."""
    return jnp.clip(vae.decode(z_BFHWC, tiling, width_slices=width_slices).astype(jnp.float32), -1, 1)
