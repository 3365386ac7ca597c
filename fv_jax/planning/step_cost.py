"""The cost of training steps and samples by formula, for the throughput that they log (`core.throughput`).

Text encoders, norms, resizing, and what rematerialization and tiles recompute are not counted.
"""

from collections.abc import Callable, Iterable, Sequence

import jax

from fv_jax.core import hardware, throughput
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAEConfig
from fv_jax.planning import flops
from fv_jax.planning.flops import Flops
from fv_jax.planning.report import compute_times
from fv_jax.sampling.lazy_stages import LazyStage
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages.latent_stage import LatentStage
from fv_jax.stages.protocol import Batch, BatchSize
from fv_jax.training.run.setup import TrainSetup

_FORWARD_AND_BACKWARD = 3  # forward passes
_HEAD_DIM = 64  # of a network without attention, which it does not matter for


def train_step_cost(setup: TrainSetup, vae: VAEConfig | None) -> Callable[[Batch], throughput.StepCost]:
    """Returns a function from a batch, before it is encoded, to the cost of its training step.

    Args:
      setup: of the run.
      vae: the sizes of the frozen VAE, which encodes batches of video; None for a stage without one.
    """
    stage, devices = setup.stage, setup.partitioner.mesh.devices.flatten()
    network = stage.network

    def cost(batch: Batch) -> throughput.StepCost:
        if isinstance(network, VAEConfig):
            batch_size, *video, _ = batch['high_res_BFHWC'].shape
            work = _encode_flops(network, video) + _decode_flops(network, video)
            # A VAE has no tokens: these are the tokens that a DiT would make of its latents.
            tokens = setup.latent_spec.num_tokens(*video)
            return _step_cost(work * (_FORWARD_AND_BACKWARD * batch_size), batch_size * tokens, devices, _HEAD_DIM)
        videos = [batch[name].shape for name in stage.latents_of if name in batch]
        batch_size, *size, _ = batch['z_high_BFHWC'].shape if 'z_high_BFHWC' in batch else videos[0]
        latents = setup.latent_spec.latent_size(*size) if videos else size
        length = _sequence_length(stage, latents, batch)
        work = flops.dit_training(network, length) + _sum(_encode_flops(vae, video) for _, *video, _ in videos)
        programs = stage.programs(BatchSize(batch_size, tuple(size), tuple(latents)))
        work += flops.dit_forward(network, length) * sum(program.target_forwards for program in programs)
        return _step_cost(work * batch_size, batch_size * length.video, devices, network.head_dim)

    return cost


def sampler_cost(stage: LatentStage, latents: Sequence[int], batch_size: int) -> throughput.StepCost:
    """Computes the cost of sampling `batch_size` latents of size (F', H', W') on one device, without the VAE."""
    work, length = _sampler_flops(stage, latents)
    return _step_cost(work * batch_size, batch_size * length.video, jax.devices()[:1], stage.network.head_dim)


def preview_cost(part: LazyStage, settings: PreviewSettings, batch_size: int) -> throughput.StepCost:
    """Computes the cost of `batch_size` previews: sampling and decoding."""
    stage, video = part.stage.with_sampler_config(settings), (settings.frames, *settings.size)
    work, length = _sampler_flops(stage, part.latent_spec.latent_size(*video))
    return _batch_cost(part, work + _decode_flops(part.vae.config, video), length, batch_size)


def enhancement_cost(
    part: LazyStage, settings: EnhanceSettings, preview_vae: VAEConfig, latents: tuple[int, int, int], batch_size: int
) -> throughput.StepCost:
    """Computes the cost of enhancing previews: decoding, encoding, sampling and decoding.

    Args:
      part: the stage.
      settings: of the enhancement.
      preview_vae: the VAE of the previews.
      latents: (F', H', W') of a preview.
      batch_size: the number of previews.
    """
    frames, height, width = preview_size = preview_vae.latent_spec.video_size(*latents)
    video_size = frames, *settings.size_for(height, width, part.latent_spec)
    work, length = _enhancement_flops(part, settings, video_size)
    return _batch_cost(part, work + _decode_flops(preview_vae, preview_size), length, batch_size)


def window_cost(part: LazyStage, settings: EnhanceSettings, frames: int, count: int) -> throughput.StepCost:
    """Computes the cost of enhancing `count` windows of clips: encoding, sampling and decoding.

    Args:
      part: the stage.
      settings: of the enhancement, with the size of the result.
      frames: of a window, which the VAE takes.
      count: the number of windows.
    """
    return _batch_cost(part, *_enhancement_flops(part, settings, (frames, *settings.size)), count)


def _enhancement_flops(
    part: LazyStage, settings: EnhanceSettings, video: tuple[int, int, int]
) -> tuple[Flops, flops.SequenceLength]:
    """Counts encoding, sampling and decoding of a video."""
    work, length = _sampler_flops(part.stage.with_sampler_config(settings), part.latent_spec.latent_size(*video))
    return work + _encode_flops(part.vae.config, video) + _decode_flops(part.vae.config, video), length


def _batch_cost(part: LazyStage, work: Flops, length: flops.SequenceLength, count: int) -> throughput.StepCost:
    """Returns the cost of `count` samples of a stage on its devices."""
    devices = part.mesh.mesh.devices.flatten()
    return _step_cost(work * count, count * length.video, devices, part.stage.network.head_dim)


def _sampler_flops(stage: LatentStage, latents: Sequence[int]) -> tuple[Flops, flops.SequenceLength]:
    length = _sequence_length(stage, latents, {})
    return flops.dit_forward(stage.network, length) * stage.num_function_evaluations(), length


def _step_cost(work: Flops, tokens: int, devices: Sequence[jax.Device], head_dim: int) -> throughput.StepCost:
    chip = hardware.find_chip(devices[0].device_kind)
    if chip is None:
        return throughput.StepCost(tokens, work.total, len(devices))
    times = compute_times(work, Flops(), chip, len(devices), head_dim)
    return throughput.StepCost(tokens, work.total, len(devices), times.peak, times.roofline)


def _encode_flops(config: VAEConfig, video: Sequence[int]) -> Flops:
    frames, height, width = video
    sizes = vae_chunking.chunk_sizes(frames, vae_chunking.encode_chunks(config.latent_spec))
    return _sum(flops.vae_encode(config, n, height, width, first=i == 0) for i, n in enumerate(sizes))


def _decode_flops(config: VAEConfig, video: Sequence[int]) -> Flops:
    frames, height, width = config.latent_spec.latent_size(*video)
    sizes = vae_chunking.chunk_sizes(frames, vae_chunking.DECODE_CHUNKS)
    return _sum(flops.vae_decode(config, n, height, width, first=i == 0) for i, n in enumerate(sizes))


def _sum(terms: Iterable[Flops]) -> Flops:
    return sum(terms, Flops())


def _sequence_length(stage: LatentStage, latents: Sequence[int], batch: Batch) -> flops.SequenceLength:
    (frames, height, width), patch = latents, stage.network.patch_size
    text_length = batch['text_BLD'].shape[1] if 'text_BLD' in batch else stage.text_shape[0]
    return flops.SequenceLength(text_length, frames * (height // patch) * (width // patch))
