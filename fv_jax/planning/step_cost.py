"""What a run and a sample compute, by formula, for the speed ledger (`core/throughput`).

Text encoders, norms, resizing and what rematerialisation and tiles compute again are left out.
"""

from collections.abc import Callable, Iterable, Sequence

import jax

from fv_jax.core import hardware, throughput
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAEConfig
from fv_jax.planning import flops
from fv_jax.planning.flops import Flops
from fv_jax.planning.report import roofline
from fv_jax.sampling.lazy_stages import LazyStage
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages.latent_stage import LatentStage
from fv_jax.stages.protocol import Batch
from fv_jax.training.run.setup import TrainSetup

_BACKWARD = 3  # a forward pass, and twice as much backwards
_HEAD_DIM = 64  # where there is no attention


def training(setup: TrainSetup, vae: VAEConfig | None) -> Callable[[Batch], throughput.StepCost]:
    """A batch, before it is encoded -> what its step computes. vae: of the frozen one, which encodes what is video."""
    stage, devices = setup.stage, setup.partitioner.mesh.devices.flatten()
    network = stage.network

    def of(batch: Batch) -> throughput.StepCost:
        if isinstance(network, VAEConfig):
            rows, *video, _ = batch['high_res_BFHWC'].shape
            done = _encode(network, video) + _decode(network, video)
            # Nothing makes patches here: tokens are those that the stages would make of its latents.
            tokens = setup.latent_spec.num_tokens(*video)
            return _work(done * (_BACKWARD * rows), rows * tokens, devices, _HEAD_DIM)
        videos = [batch[name].shape for name in stage.latents_of if name in batch]
        rows, *size, _ = batch['z_high_BFHWC'].shape if 'z_high_BFHWC' in batch else videos[0]
        latents = setup.latent_spec.latent_size(*size) if videos else size
        row = _row(stage, latents, batch)
        done = flops.dit_training(network, row) + _sum(_encode(vae, video) for _, *video, _ in videos)
        return _work(done * rows, rows * row.video, devices, network.head_dim)

    return of


def sampler(stage: LatentStage, latents: Sequence[int], rows: int) -> throughput.StepCost:
    """Of the network alone, for so many samples of these latents (F', H', W')."""
    done, row = _sampler(stage, latents)
    return _work(done * rows, rows * row.video, jax.devices()[:1], stage.network.head_dim)


def preview(part: LazyStage, settings: PreviewSettings, rows: int) -> throughput.StepCost:
    """Of so many previews: stage 1's sampler, and the decode."""
    stage, video = part.stage.with_sampler_config(settings), (settings.frames, *settings.size)
    done, row = _sampler(stage, part.latent_spec.latent_size(*video))
    done += _decode(part.vae.config, video)
    return _work(done * rows, rows * row.video, jax.devices()[:1], stage.network.head_dim)


def enhancement(
    part: LazyStage, settings: EnhanceSettings, preview_vae: VAEConfig, latents: tuple[int, int, int], rows: int
) -> throughput.StepCost:
    """Of so many previews of these latents (F', H', W'): their decode, the encode, stage 2's sampler, the decode."""
    stage, vae, latent_spec = part.stage.with_sampler_config(settings), part.vae.config, part.latent_spec
    frames, height, width = small = preview_vae.latent_spec.video_size(*latents)
    large = frames, *settings.size_for(height, width, latent_spec)
    done, row = _sampler(stage, latent_spec.latent_size(*large))
    done += _decode(preview_vae, small) + _encode(vae, large) + _decode(vae, large)
    return _work(done * rows, rows * row.video, jax.devices()[:1], stage.network.head_dim)


def _sampler(stage: LatentStage, latents: Sequence[int]) -> tuple[Flops, flops.Sequence]:
    row = _row(stage, latents, {})
    return flops.dit_forward(stage.network, row) * stage.num_function_evaluations(), row


def _work(done: Flops, tokens: int, devices: Sequence[jax.Device], head_dim: int) -> throughput.StepCost:
    chip = hardware.known_chip(devices[0].device_kind)
    if chip is None:
        return throughput.StepCost(tokens, done.total, len(devices))
    times = roofline(done, Flops(), chip, len(devices), head_dim)
    return throughput.StepCost(tokens, done.total, len(devices), times.peak, times.ceiling)


def _encode(config: VAEConfig, video: Sequence[int]) -> Flops:
    frames, height, width = video
    sizes = vae_chunking.chunk_sizes(frames, vae_chunking.encode_chunks(config.latent_spec))
    return _sum(flops.vae_encode(config, n, height, width, first=i == 0) for i, n in enumerate(sizes))


def _decode(config: VAEConfig, video: Sequence[int]) -> Flops:
    frames, height, width = config.latent_spec.latent_size(*video)
    sizes = vae_chunking.chunk_sizes(frames, vae_chunking.DECODE_CHUNKS)
    return _sum(flops.vae_decode(config, n, height, width, first=i == 0) for i, n in enumerate(sizes))


def _sum(each: Iterable[Flops]) -> Flops:
    return sum(each, Flops())


def _row(stage: LatentStage, latents: Sequence[int], batch: Batch) -> flops.Sequence:
    (frames, height, width), patch = latents, stage.network.patch_size
    text_length = batch['text_BLD'].shape[1] if 'text_BLD' in batch else stage.text_shape[0]
    return flops.Sequence(text_length, frames * (height // patch) * (width // patch))
