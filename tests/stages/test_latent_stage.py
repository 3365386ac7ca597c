"""What stages on latents share: batches, sampler configurations, and the descriptions of their programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.config import ConfigError
from fv_jax.diffusion.samplers import SAMPLERS
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.lora import LoRAConfig, LoRAParam
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.protocol import BatchSize
from fv_jax.stages.sampler_configs import EnhancementSamplerConfig, PreviewSamplerConfig
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from tests.sampling import tiny

SIZE = BatchSize(2, (9, 16, 32), (3, 2, 4))
FIRST, SECOND = LowRes(tiny.LOWRES, tiny.FIRST_DIT), SuperRes(tiny.SUPERRES, tiny.DIT)
VAE = Autoencoder(AutoencoderConfig(), tiny.VAE_CONFIG)


def test_encode_encodes_videos_and_keeps_latents():
    video = jnp.ones((1, 2))
    batch = {'high_res_BFHWC': video, 'low_res_BFHWC': 3 * video, 'text_BLD': jnp.zeros((1, 3, 4))}
    encoded = dataclasses.replace(SECOND, encoder=lambda video: 2 * video).encode(batch)
    assert encoded.keys() == {'z_high_BFHWC', 'z_low_BFHWC', 'text_BLD'}
    assert float(encoded['z_high_BFHWC'][0, 0]) == 2 and float(encoded['z_low_BFHWC'][0, 0]) == 6
    assert SECOND.encode(encoded) == encoded
    with pytest.raises(ValueError, match='holds high_res_BFHWC, low_res_BFHWC, but this stage has no encoder'):
        SECOND.encode(batch)


def test_text_is_float32_or_zeros():
    text = jnp.ones((1, 3, 4), jnp.bfloat16)
    assert FIRST.text({'text_BLD': text}).dtype == jnp.float32
    z = jnp.zeros((2, 3, 2, 4, 4))
    np.testing.assert_array_equal(FIRST.text({'z_high_BFHWC': z}), np.zeros((2, *FIRST.text_shape)))


@pytest.mark.parametrize('stage', [FIRST, SECOND, VAE])
def test_stage_inputs_are_those_of_a_step(stage):
    """`sample_noise_and_time` and `loss` accept a batch of these shapes, and read all of it."""
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in stage.inputs(SIZE).items()}
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), SIZE.examples))
    noised = jax.eval_shape(stage.sample_noise_and_time, batch, keys_B)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(noised)} == {SIZE.examples}
    for name in batch.keys() - {'text_BLD'}:
        rest = {other: shape for other, shape in batch.items() if other != name}
        with pytest.raises(KeyError, match=name):
            jax.eval_shape(stage.sample_noise_and_time, rest, keys_B)


@pytest.mark.parametrize(('stage', 'config'), [(FIRST, PreviewSamplerConfig), (SECOND, EnhancementSamplerConfig)])
def test_with_sampler_config_changes_sampling_only(stage, config):
    before = stage.sampler_config()
    assert type(before) is config and stage.with_sampler_config(before) == stage
    after = dataclasses.replace(before, num_steps=7, guidance_batched=not before.guidance_batched)
    changed = stage.with_sampler_config(after)
    assert changed.sampler_config() == after
    kept = {field.name for field in dataclasses.fields(stage.config)} - {'num_steps', 'guidance_batched'}
    assert all(getattr(changed.config, name) == getattr(stage.config, name) for name in kept)
    with pytest.raises(ConfigError, match='num_steps=0'):
        stage.with_sampler_config(dataclasses.replace(before, num_steps=0))


@pytest.mark.parametrize('stage', [FIRST, SECOND])
@pytest.mark.parametrize('targets', [None, ('qkv', 'attention_out', 'modulation')])
def test_stage_trains_lora_only_if_present(stage, targets):
    lora = None if targets is None else LoRAConfig(rank=4, targets=targets)
    here = dataclasses.replace(stage, network=dataclasses.replace(stage.network, lora=lora))
    _, trained, rest = nnx.split(abstract_module(here.init), here.trainable(), ...)
    kinds = {type(variable) for _, variable in nnx.to_flat_state(trained)}
    if lora is None:
        assert kinds == {nnx.Param} and not jax.tree.leaves(rest)
    else:
        assert kinds == {LoRAParam} and len(jax.tree.leaves(trained)) == 6  # two matrices for each of three linears
        assert LoRAParam not in {type(variable) for _, variable in nnx.to_flat_state(rest)}


def test_number_of_function_evaluations():
    for name, sampler in SAMPLERS.items():
        flow = sampler.prediction_type == 'flow'
        if sampler.prediction_type == 'mean_velocity':
            continue  # has a stage of its own
        fields = {'sampler': name, 'num_steps': 3}
        first = dataclasses.replace(
            FIRST, config=LowResConfig(prediction_type=sampler.prediction_type, guidance_kind='constant', **fields)
        )
        assert first.num_function_evaluations() == 2 * 3 * sampler.evaluations
        off = dataclasses.replace(first.sampler_config(), guidance_scale=1.0)
        assert first.with_sampler_config(off).num_function_evaluations() == 3 * sampler.evaluations
        if flow:
            second = dataclasses.replace(SECOND, config=SuperResConfig(**fields))
            assert second.num_function_evaluations() == 2 * 3 * sampler.evaluations
            assert second.without_guidance().num_function_evaluations() == 3 * sampler.evaluations


def test_stage_programs():
    z, text, video = (2, 3, 2, 4, 4), (2, 3, 8), (2, 9, 16, 32, 3)

    def describe(stage):
        return [(p.network, p.inputs, p.runs) for p in stage.programs(SIZE)]

    assert describe(FIRST) == [
        ('stage', {'z_high_BFHWC': z, 'text_BLD': text}, 1),
        ('encoder', {'video_BFHWC': video}, 1),
    ]
    assert describe(SECOND) == [
        ('stage', {'z_high_BFHWC': z, 'z_low_BFHWC': z, 'text_BLD': text}, 1),
        ('encoder', {'video_BFHWC': video}, 2),
    ]
    assert describe(VAE) == []


def test_exported_functions_take_their_inputs():
    for stage, names in ((FIRST, []), (SECOND, ['velocity']), (VAE, ['encode', 'decode'])):
        found = stage.exported_functions(SIZE._replace(examples=1), context=SINGLE_DEVICE)
        assert [function.name for function in found] == names
        for function in found:
            assert all(shape[0] == 1 for shape in function.inputs.values())
            assert str(function).startswith(f'{function.name}({next(iter(function.inputs))} float32[1')
