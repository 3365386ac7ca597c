"""The step cost that runs log is what the plan counts."""

import jax
import jax.numpy as jnp
import pytest

from fv_jax.core.command_line import read_config
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import FRAMES, Partitioner
from fv_jax.planning import sampled_stages, step_cost
from fv_jax.planning.sampled_stages import SampledPipeline
from fv_jax.planning.sampling_phases import sampling_phases
from fv_jax.planning.training_phase import largest_bucket, training_phase
from fv_jax.sampling.lazy_stages import LazyStage, LazyVAE
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages import registry
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup

VAE = LazyVAE(OFFICIAL, lambda: JittedVAE(None, None, OFFICIAL), lambda: '')


def train_setup(program, *overrides):
    config = read_config(
        TrainConfig, program, [('data.loader.batch_size', '1'), ('loop.microbatches', '1'), *overrides]
    )
    latent_spec = registry.latent_spec(config.stage, OFFICIAL if registry.needs_vae(config.stage) else None)
    partitioner = make_partitioner(config, make_mesh(config.parallel, jax.devices()[:1]), latent_spec)
    return make_train_setup(config, partitioner, latent_spec)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def total(phase):
    return sum(each.flops.total * each.runs for each in phase.programs)


@pytest.mark.parametrize(('program', 'videos_per_clip'), [('configs/stage2.py', 2), ('configs/stage1.py', 1)])
def test_train_step_cost_matches_the_plan(program, videos_per_clip):
    setup = train_setup(program, ('data.cache', 'none'))
    bucket = largest_bucket(setup)
    video = shape(1, bucket.frames, bucket.height, bucket.width, 3)
    batch = dict(zip(('high_res_BFHWC', 'low_res_BFHWC')[:videos_per_clip], [video] * videos_per_clip, strict=True))
    cost = step_cost.train_step_cost(setup, OFFICIAL)(batch)
    assert cost.flops == pytest.approx(total(training_phase(setup, OFFICIAL, bucket)))
    tokens = OFFICIAL.latent_spec.num_tokens(*bucket.size)
    assert (cost.tokens, cost.devices, cost.peak_seconds) == (tokens, 1, None)  # the peak of a CPU is not known
    latents = shape(1, 1 + (bucket.frames - 1) // 4, bucket.height // 8, bucket.width // 8, 16)
    encoded = step_cost.train_step_cost(setup, None)({'z_high_BFHWC': latents, 'z_low_BFHWC': latents})
    cached = train_setup(program, ('data.cache', "{'num_degraded_variants': 1, 'crop': None}"))
    assert encoded.flops == pytest.approx(total(training_phase(cached, OFFICIAL, bucket)))
    assert encoded.tokens == cost.tokens


def test_train_step_cost_of_a_vae_is_three_forward_passes():
    setup = train_setup('configs/vae.py:smoke')
    net = setup.config.stage.network
    cost = step_cost.train_step_cost(setup, None)({'high_res_BFHWC': shape(2, 9, 32, 48, 3)})
    once = step_cost._encode_flops(net, (9, 32, 48)) + step_cost._decode_flops(net, (9, 32, 48))
    assert cost.flops == pytest.approx(3 * 2 * once.vae) and cost.tokens == 2 * 3 * 2 * 3


def test_sampling_cost_matches_the_plan():
    mesh = SamplingMesh.create(devices=jax.devices()[:1])
    first, second = sampled_stages.official_stages(('1', '2'))
    preview, enhancement = (LazyStage(s.name, s.stage, None, VAE, None, mesh) for s in (first, second))
    text_device = Partitioner(make_mesh(ParallelConfig(), jax.devices()[:1]), FRAMES)
    for pipeline, cost in (
        (SampledPipeline(first, None, 2), step_cost.preview_cost(preview, PreviewSettings(), 2)),
        (
            SampledPipeline(first, second, 2),
            step_cost.enhancement_cost(enhancement, EnhanceSettings(), OFFICIAL, (13, 32, 60), 2),
        ),
    ):
        *_, phase = sampling_phases(pipeline, mesh, text_device)
        assert cost.flops == pytest.approx(total(phase), rel=1e-3)  # resizing is counted in the plan alone
        assert cost.tokens == 2 * OFFICIAL.latent_spec.num_tokens(*map(int, phase.size.split('x')))


def test_step_cost_of_a_known_chip_has_peak_and_roofline_seconds(monkeypatch):
    class Device:
        device_kind = 'TPU v5 lite'

    cost = step_cost._step_cost(step_cost.Flops(attention=197e12, linear=197e12), 10, [Device()] * 2, 64)
    assert (cost.peak_seconds, cost.roofline_seconds) == (1.0, 1.5)
