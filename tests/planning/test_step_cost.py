"""The step cost that runs log is what the plan counts."""

import jax
import jax.numpy as jnp
import pytest

from fv_jax.core.command_line import read_config
from fv_jax.models.dit import STAGE1, STAGE2
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel.mesh import make_mesh
from fv_jax.planning import programs, step_cost
from fv_jax.sampling.lazy_stages import LazyStage, LazyVAE
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages import registry, super_res
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.super_res import SuperRes
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup

VAE = LazyVAE(OFFICIAL, lambda: JittedVAE(None, None, OFFICIAL), lambda: '')


def train_setup(program, *overrides):
    config = read_config(TrainConfig, program, [('data.loader.batch_size', '1'), *overrides])
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
    bucket = programs.largest_bucket(setup)
    video = shape(1, bucket.frames, bucket.height, bucket.width, 3)
    batch = dict(zip(('high_res_BFHWC', 'low_res_BFHWC')[:videos_per_clip], [video] * videos_per_clip, strict=True))
    cost = step_cost.train_step_cost(setup, OFFICIAL)(batch)
    assert cost.flops == pytest.approx(total(programs.training_phase(setup, OFFICIAL, bucket)))
    tokens = OFFICIAL.latent_spec.num_tokens(*bucket.size)
    assert (cost.tokens, cost.devices, cost.peak_seconds) == (tokens, 1, None)  # the peak of a CPU is not known
    latents = shape(1, 1 + (bucket.frames - 1) // 4, bucket.height // 8, bucket.width // 8, 16)
    encoded = step_cost.train_step_cost(setup, None)({'z_high_BFHWC': latents, 'z_low_BFHWC': latents})
    cached = train_setup(program, ('data.cache', "{'num_degraded_variants': 1, 'crop': None}"))
    assert encoded.flops == pytest.approx(total(programs.training_phase(cached, OFFICIAL, bucket)))
    assert encoded.tokens == cost.tokens


def test_train_step_cost_of_a_vae_is_three_forward_passes():
    setup = train_setup('configs/vae.py:smoke')
    net = setup.config.stage.network
    cost = step_cost.train_step_cost(setup, None)({'high_res_BFHWC': shape(2, 9, 32, 48, 3)})
    once = step_cost._encode_flops(net, (9, 32, 48)) + step_cost._decode_flops(net, (9, 32, 48))
    assert cost.flops == pytest.approx(3 * 2 * once.vae) and cost.tokens == 2 * 3 * 2 * 3


def test_sampling_cost_matches_the_plan():
    first = LazyStage('1', LowRes(LowResConfig(), STAGE1), None, VAE, None)
    second = LazyStage('2', SuperRes(super_res.OFFICIAL, STAGE2), None, VAE, None)
    for program, cost in (
        ('configs/stage1.py', step_cost.preview_cost(first, PreviewSettings(), 2)),
        ('configs/stage2.py', step_cost.enhancement_cost(second, EnhanceSettings(), OFFICIAL, (13, 32, 60), 2)),
    ):
        setup = train_setup(program)
        planned = total(programs.sampling_phase(setup, OFFICIAL, programs.largest_bucket(setup)))
        # Enhancing decodes the preview too, and official stage 1 has the same steps and guidance as its config.
        assert cost.flops == pytest.approx(2 * planned, rel=0.01) and cost.flops >= 2 * planned
        assert cost.tokens == 2 * OFFICIAL.latent_spec.num_tokens(*programs.largest_bucket(setup).size)


def test_step_cost_of_a_known_chip_has_peak_and_roofline_seconds(monkeypatch):
    class Device:
        device_kind = 'TPU v5 lite'

    cost = step_cost._step_cost(step_cost.Flops(attention=197e12, linear=197e12), 10, [Device()] * 2, 64)
    assert (cost.peak_seconds, cost.roofline_seconds) == (1.0, 1.5)
