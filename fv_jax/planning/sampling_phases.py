"""The programs of sampling, lowered exactly as `sampling` lowers them: from a prompt to the enhanced video.

    text           T5, on one device, opened for each stage and freed before its network is loaded
    first stage    a step of the sampler; the decoding of the preview
    second stage   the decoding of the preview, whose latents are stored; resizing, encoding, a step of the sampler,
                   decoding

The network of a stage stays in memory once it is loaded, and so does the VAE that both share. Small programs, such as
the one that draws a sampler's first state, are skipped.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.abstract_module import abstract_module
from fv_jax.models import vae_chunking
from fv_jax.models.t5 import T5, T5Config
from fv_jax.parallel import arrays
from fv_jax.parallel.mesh import describe
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import flops
from fv_jax.planning.flops import Flops, SequenceLength
from fv_jax.planning.programs import Phase, PlannedProgram, bytes_per_chip, count_shards, estimate_layer_bytes
from fv_jax.planning.sampled_stages import SampledPipeline, SampledStage, Size
from fv_jax.planning.vae_programs import abstract_vae, decode_programs, encode_programs
from fv_jax.sampling import programs
from fv_jax.sampling.programs import LoadedStage
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.sampling.settings import EnhanceSettings
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.text import t5_encoder, tokenizer
from fv_jax.text.encoder import TextConfig

SAMPLER_STEP = 'sampler step'


def sampling_phases(
    pipeline: SampledPipeline, mesh: SamplingMesh, text_device: Partitioner, kind: str | None = None
) -> Iterator[Phase]:
    """Plans sampling: yields its phases in the order in which they run.

    Args:
      pipeline: the stages.
      mesh: that they are sampled on.
      text_device: the partitioner of the device that T5 runs on.
      kind: name of the devices, for display; None for their platform.
    """
    placed = _Placement(pipeline.batch_size, mesh)
    where = describe(mesh.mesh, kind), describe(text_device.mesh, kind)
    vaes = {config: abstract_vae(config, mesh.frames_partitioner) for config in {s.vae for s in pipeline.stages}}
    texts = {text: plan_t5(text, pipeline.batch_size, text_device) for text in {s.text for s in pipeline.t5_stages}}
    resident: dict[str, float] = {}
    decode_preview: list[PlannedProgram] = []
    for i, stage in enumerate(pipeline.stages):
        if stage in pipeline.t5_stages:
            yield _text_phase(stage, texts[stage.text], resident, pipeline.batch_size, where[1])
        loaded, vae = LoadedStage.abstract(stage.sampled, mesh), vaes[stage.vae]
        resident[stage.name] = bytes_per_chip(loaded.state)
        resident['VAE'] = sum(_vae_bytes(vaes[config]) for config in {s.vae for s in pipeline.stages[: i + 1]})
        if stage is pipeline.preview:
            size = pipeline.preview_size
            decode_preview = list(decode_programs(vae, placed.latents(stage, size)))
            planned = [_plan_step(stage, loaded, placed, size), *decode_preview]
        else:
            size = pipeline.enhanced_size
            resident['video'] = _video_bytes(stage, vae, placed, size)
            again = [dataclasses.replace(each, name=f'preview {each.name}') for each in decode_preview]
            planned = [*again, *_plan_enhancement(pipeline, loaded, vae, placed)]
        yield Phase(
            stage.name,
            dict(resident),
            tuple(planned),
            pipeline.batch_size,
            mesh.mesh.size,
            stage.stage.network.head_dim,
            'x'.join(map(str, size)),
            where[0],
        )


# --- abstract networks and arrays ---


@dataclasses.dataclass(frozen=True)
class _Placement:
    """ShapeDtypeStructs of a batch, with the shardings that sampling gives them."""

    batch_size: int
    mesh: SamplingMesh

    def replicated(self, *shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
        return self.mesh.replicate(jax.ShapeDtypeStruct((self.batch_size, *shape), dtype))

    def latents(self, stage: SampledStage, size: Size) -> jax.ShapeDtypeStruct:
        """Returns the latents of videos of a size."""
        return self.replicated(*stage.latent_spec.latent_size(*size), stage.stage.network.latent_channels)

    def video(self, vae: JittedVAE, size: Size) -> jax.ShapeDtypeStruct:
        shape = self.batch_size, *size, 3
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=vae.video_sharding(shape))


def _vae_bytes(vae: JittedVAE) -> float:
    return bytes_per_chip((vae.encoder.state, vae.decoder.state))


def _video_bytes(stage: SampledStage, vae: JittedVAE, placed: _Placement, size: Size) -> float:
    """Counts the bytes of the video that chunks are cut from or appended to; that of tiles is not divided."""
    tiled = stage.settings.tile_size is not None
    return bytes_per_chip(placed.replicated(*size, 3) if tiled else placed.video(vae, size))


# --- stages ---


def _plan_step(stage: SampledStage, loaded: LoadedStage, placed: _Placement, size: Size) -> PlannedProgram:
    """Plans a step of the sampler of videos of a size."""
    z = placed.latents(stage, size)
    lower = functools.partial(programs.lower_preview_step, loaded, z.shape)
    if isinstance(stage.settings, EnhanceSettings):
        text = bool(stage.text.encoder)
        lower = functools.partial(programs.lower_enhance_step, loaded, z.shape, text=text)
        loaded = loaded if text else programs.without_text(loaded)
    dit, rows, steps = loaded.stage.network, loaded.rows * placed.batch_size, loaded.stage.config.num_steps
    sequence = SequenceLength(loaded.stage.text_shape[0], stage.latent_spec.num_tokens(*size))
    weights = bytes_per_chip(loaded.state)
    partitioner = placed.mesh.activation_partitioner(loaded.partitioner, rows, sequence.total)
    # A layer's weights are gathered where they are split.
    gathered = weights * (loaded.partitioner.num_shards(axes.EMBED) - 1) / dit.num_layers
    return PlannedProgram(
        name=SAMPLER_STEP,
        lower=lower,
        runs=steps,
        flops=flops.dit_forward(dit, sequence) * (placed.batch_size * loaded.stage.num_function_evaluations() / steps),
        devices=math.prod(map(partitioner.num_shards, (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_HEADS))),
        resident_argument_bytes=weights,
        estimated_bytes=gathered + estimate_layer_bytes(dit, sequence, rows, partitioner, training=False),
    )


def _plan_enhancement(
    pipeline: SampledPipeline, loaded: LoadedStage, vae: JittedVAE, placed: _Placement
) -> Iterator[PlannedProgram]:
    """Plans what enhances a decoded preview."""
    stage, size = pipeline.enhancement, pipeline.enhanced_size
    tiling = stage.settings.tiling(stage.latent_spec)
    tiles, tile = 1, size
    if tiling is not None:
        tiles, tile = tiling.count(*size[1:]), (size[0], *tiling.clamp_tile(*size[1:]))
    yield _plan_resize(vae, placed.video(vae, pipeline.preview_size), placed.video(vae, size))
    yield from encode_programs(vae, placed.video(vae, tile), tiles)
    yield _plan_step(stage, loaded, placed, size)
    z = placed.latents(stage, tile)
    ranges = vae_chunking.slice_columns(z.shape[3], stage.settings.slices)
    widths = [right - left for left, _, _, right in ranges]
    for width in sorted(set(widths)):
        columns = placed.replicated(*z.shape[1:3], width, z.shape[4])
        yield from decode_programs(vae, columns, tiles * widths.count(width))


def _plan_resize(vae: JittedVAE, video: jax.ShapeDtypeStruct, resized: jax.ShapeDtypeStruct) -> PlannedProgram:
    batch_size, frames, _, width, channels = video.shape
    height_out, width_out = resized.shape[2:4]
    products = batch_size * frames * channels * height_out * width * (video.shape[2] + width_out)
    return PlannedProgram(
        name='resize',
        lower=functools.partial(programs.lower_resize, vae, video, (height_out, width_out)),
        flops=Flops(linear=2 * products),
        devices=count_shards(resized.sharding, resized.shape),
        estimated_bytes=bytes_per_chip(resized),
    )


# --- text ---


def _text_phase(
    stage: SampledStage, program: PlannedProgram, resident: dict[str, float], batch_size: int, where: str
) -> Phase:
    resident = resident | {'T5': program.resident_argument_bytes}
    size = f'{stage.text.length or tokenizer.OFFICIAL_LENGTH} tokens'
    return Phase(f'text of {stage.name}', resident, (program,), batch_size, 1, T5Config().head_dim, size, where)


def plan_t5(text: TextConfig, batch_size: int, text_device: Partitioner) -> PlannedProgram:
    """Plans the encoding of texts by T5-XXL.

    Args:
      text: the encoder's options.
      batch_size: the number of texts, of which a run takes eight at the most.
      text_device: the partitioner of the device that it runs on.
    """
    config = T5Config(dtype=text.dtype, param_dtype=text.dtype)
    tokens, rows = text.length or tokenizer.OFFICIAL_LENGTH, min(batch_size, t5_encoder.BATCH)
    graphdef, state = nnx.split(abstract_module(functools.partial(T5, config)))
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    state, ids = arrays.put_sharded((state, ids), jax.tree.map(lambda _: text_device.replicated, (state, ids)))
    return PlannedProgram(
        name='T5',
        lower=lambda: t5_encoder.embed_ids.lower(state, ids, graphdef, text.masked),
        runs=-(-batch_size // rows),
        flops=flops.t5_forward(config, tokens) * rows,
        devices=1,
        resident_argument_bytes=bytes_per_chip(state),
        estimated_bytes=rows * tokens * 4 * (2 * config.mlp_dim + config.num_heads * tokens),
    )
