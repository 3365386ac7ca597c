"""Folders for diffusers against the names and shapes of its stock classes, which `diffusers_keys.json` records.

The recorded classes have the sizes of `CONFIG` and `VAE`. `tests/benchmarks/full_diffusers.py` compares what they
compute.
"""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.weights import diffusers_pipeline, reader
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.layouts import diffusers_export, key_table
from fv_jax.weights.parameters import Parameter

RECORDED = json.loads((pathlib.Path(__file__).parent / 'diffusers_keys.json').read_text())
CONFIG = DiTConfig(latent_channels=3, embed_dim=32, num_layers=2, num_heads=2, mlp_dim=128, cond_dim=8, text_dim=5)
PLAIN = dataclasses.replace(CONFIG, embed_num_frames=False, embed_noise_augmentation_timestep=False)
VAE = VAEConfig(base_channels=32, multipliers=(1, 2, 2, 3), num_res_blocks=1, latent_channels=4, groups=32)
SETTINGS = diffusers_export.TransformerSettings((3, 4, 6), 9, 4, 7)
STAGE2 = dataclasses.replace(SETTINGS, noise_augmentation_timestep=675.0, predicts_opposite=True)


def random_values(config, dtype=np.float32):
    """Parameters of a network that were not initialized: every one is random."""
    rng = np.random.default_rng(0)
    leaves = key_table.named_parameters(reader.nnx.state(reader.abstract_network(config)))
    arrays = {name: rng.standard_normal(leaf.shape).astype(dtype) for name, (_, leaf) in leaves.items()}
    return {name: Parameter(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}


def written(folder, config, settings=SETTINGS, dtype=None):
    values = random_values(config)
    diffusers_export.write_transformer(folder, values, config, settings, dtype)
    tensors = {key: tensor.numpy() for key, tensor in safetensors_file.read_folder(folder).items()}
    return values, tensors, json.loads((folder / 'config.json').read_text())


def shapes(tensors):
    return {key: list(x.shape) for key, x in tensors.items()}


@pytest.mark.parametrize(('config', 'settings'), [(PLAIN, SETTINGS), (CONFIG, STAGE2)])
def test_transformer_has_the_tensors_of_the_stock_class(tmp_path, config, settings):
    _, tensors, described = written(tmp_path / 'transformer', config, settings)
    assert shapes(tensors) == RECORDED['transformer']
    names = {name for name in described if not name.startswith('_')}
    assert names <= set(RECORDED['transformer_config'])
    assert described['_class_name'] == 'CogVideoXTransformer3DModel'
    assert (described['sample_height'], described['sample_width'], described['sample_frames']) == (4, 6, 9)


def test_vae_has_the_tensors_of_the_stock_class(tmp_path):
    values = random_values(VAE)
    diffusers_export.write_vae(tmp_path / 'vae', values, VAE, 0.7)
    assert shapes(safetensors_file.read_folder(tmp_path / 'vae')) == RECORDED['vae']
    described = json.loads((tmp_path / 'vae' / 'config.json').read_text())
    assert {name for name in described if not name.startswith('_')} <= set(RECORDED['vae_config'])
    source = reader.open_weights(tmp_path / 'vae')
    assert source.config == VAE
    assert_same(source.parameters(), values)


def assert_same(found, values):
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name].numpy(), value.numpy(), err_msg=name)


@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_network_without_constants_is_read_back_bit_exactly(tmp_path, dtype):
    values, _, _ = written(tmp_path / 'transformer', PLAIN, dtype=dtype)
    source = reader.open_weights(tmp_path / 'transformer', param_dtype=None)
    assert source.config == dataclasses.replace(PLAIN, param_dtype=dtype or 'float32') and source.notes == ()
    assert_same(source.parameters(), key_table.cast_parameters(values, dtype))


def test_norm_factor_makes_the_eps_that_of_the_head(tmp_path):
    """The stock class normalizes twice with eps 1e-5; ours the second time with 1e-6."""
    values, tensors, _ = written(tmp_path / 'transformer', PLAIN)
    h = np.random.default_rng(1).standard_normal((5, 32))

    def norm(x, eps):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)

    scale, bias = (0.03 * values[f'final_norm.{name}'].numpy() for name in ('scale', 'bias'))
    theirs = [0.03 * tensors[f'norm_final.{name}'] for name in ('weight', 'bias')]
    ours = norm(norm(h, 1e-5) * scale + bias, 1e-6)
    assert np.abs(norm(norm(h, 1e-5) * theirs[0] + theirs[1], 1e-5) - ours).max() < 1e-3
    assert np.abs(norm(norm(h, 1e-5) * scale + bias, 1e-5) - ours).max() > 5e-3  # without the factor


def test_embeddings_are_constants_of_the_time_bias(tmp_path):
    values, tensors, _ = written(tmp_path / 'transformer', CONFIG, STAGE2)
    network = key_table.build_module(reader.abstract_network(CONFIG), values)
    conditioned = network.embed_cond(jnp.full(1, 909.0), 3, jnp.full(1, 675.0))
    hidden = jnp.asarray(tensors['time_embedding.linear_1.weight']) @ network._sinusoid(jnp.full(1, 909.0))[0]
    hidden = hidden + tensors['time_embedding.linear_1.bias']
    folded = tensors['time_embedding.linear_2.weight'] @ (hidden * (1 / (1 + jnp.exp(-hidden))))
    np.testing.assert_allclose(folded + tensors['time_embedding.linear_2.bias'], conditioned[0], rtol=1e-5, atol=1e-4)
    assert np.abs(tensors['time_embedding.linear_2.bias'] - values['time_embed.out.bias'].numpy()).max() > 1


def test_output_of_stage_2_is_negated(tmp_path):
    values, tensors, _ = written(tmp_path / 'transformer', CONFIG, STAGE2)
    np.testing.assert_array_equal(tensors['proj_out.weight'], -values['output.out.kernel'].numpy().T)
    np.testing.assert_array_equal(tensors['proj_out.bias'], -values['output.out.bias'].numpy())


def test_network_with_constants_is_not_read_as_weights(tmp_path):
    written(tmp_path / 'transformer', CONFIG, STAGE2)
    with pytest.raises(ValueError, match=r'transformer: .*constants; use the run that it was exported from'):
        reader.open_weights(tmp_path / 'transformer')


def test_network_with_another_mlp_is_refused(tmp_path):
    config = dataclasses.replace(PLAIN, mlp_dim=64)
    with pytest.raises(ValueError, match='mlp_dim=64: diffusers has only MLPs of 4 x embed_dim = 128'):
        written(tmp_path / 'transformer', config)
    assert not (tmp_path / 'transformer').exists()


# Pipelines.


def write_pipeline(folder, stage, network, dtype=None):
    config = registry.StageConfig(stage, network, _OPTIONS[stage], vae='embedded')
    vae = dataclasses.replace(VAE, latent_channels=network.latent_channels)
    export = diffusers_pipeline.DiffusersExport(
        config, random_values(network), vae, random_values(vae), (9, 32, 48), dtype
    )
    folder.mkdir()
    diffusers_pipeline.write_pipeline(folder, export)
    return export


_OPTIONS = {
    'lowres': LowResConfig(text_length=7),
    'superres': SuperResConfig(text_length=7, noise_augmentation_timestep=675, numerics='official'),
}


@pytest.mark.parametrize(('stage', 'network'), [('lowres', PLAIN), ('superres', CONFIG)])
def test_pipeline_folder(tmp_path, stage, network):
    export = write_pipeline(tmp_path / 'out', stage, network)
    index = json.loads((tmp_path / 'out' / 'model_index.json').read_text())
    file, name = index['_class_name']
    code = (tmp_path / 'out' / f'{file}.py').read_text()
    assert f'class {name}(' in code
    compile(code, 'pipeline.py', 'exec')
    for part in ('transformer', 'vae'):
        assert json.loads((tmp_path / 'out' / part / 'config.json').read_text())['_class_name'] == index[part][1]
    scheduler = json.loads((tmp_path / 'out' / 'scheduler' / 'scheduler_config.json').read_text())
    assert scheduler['_class_name'] == index['scheduler'][1]
    recorded = RECORDED['schedulers'][scheduler['_class_name']]
    assert {key for key in scheduler if not key.startswith('_')} <= set(recorded)
    settings = {key: value for key, value in index.items() if not key.startswith('_') and not isinstance(value, list)}
    for setting in settings:
        assert f'        {setting}=' in code  # an argument of the constructor
    assert json.loads((tmp_path / 'out' / 'vae' / 'config.json').read_text())['scaling_factor'] == (
        export.stage.options.scale_factor
    )


def test_pipeline_of_stage_2_has_the_official_constants(tmp_path):
    write_pipeline(tmp_path / 'out', 'superres', CONFIG)
    index = json.loads((tmp_path / 'out' / 'model_index.json').read_text())
    assert index['signal_share'] == pytest.approx(0.2639587, abs=1e-7)  # model guide 5.1
    assert (index['num_inference_steps'], index['guidance_scale']) == (5, 13.0)
    described = json.loads((tmp_path / 'out' / 'transformer' / 'config.json').read_text())
    # 'official' numerics embed 676 for 675.
    assert described['_fv_jax']['constants'] == {'frames': 3, 'noise_augmentation_timestep': 676.0}


@pytest.mark.parametrize('stage', [LowRes(LowResConfig(), PLAIN), SuperRes(SuperResConfig(), CONFIG)])
def test_every_pipeline_has_its_class(stage):
    code = (pathlib.Path(diffusers_pipeline.__file__).parent / 'torch_files' / 'pipeline.py').read_text()
    assert f'class {stage.diffusers_pipeline().name}(' in code


def test_stage_that_diffusers_cannot_sample_is_refused():
    stage = LowRes(LowResConfig(prediction_type='flow', sampler='euler'), PLAIN)
    with pytest.raises(ValueError, match=r'prediction_type=flow: diffusers samples .* v_prediction only'):
        stage.diffusers_pipeline()
