"""Parity of stage 1 with the official code: LoRA separate, merged and absent (model guide 2); its file round trip."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.models.layers import sinusoid
from fv_jax.models.lora import LoRAConfig, LoRAParam, merge_lora
from fv_jax.models.patch import patch_grid
from fv_jax.models.rope import rope_table
from fv_jax.models.sequence import SequenceLayout
from fv_jax.weights import load_official, save_official
from fv_jax.weights.formats import torch_zip
from fv_jax.weights.layouts.official_dit import POSITION_TABLE
from tests.models.single_block import run_block
from tests.sampling import tiny

TOLERANCE = 1e-4  # maximum absolute
FILES = {'stage1.pt': 'module', 'stage2.pt': 'module', '3d-vae.pt': 'state_dict'}


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=TOLERANCE)


def bfhwc(x_BFCHW):
    return jnp.asarray(x_BFCHW.transpose(0, 1, 3, 4, 2))


@pytest.fixture(scope='module', autouse=True)
def fast_compiling():
    with tiny.fast_compiling():
        yield


@pytest.fixture(scope='module')
def model(official):
    return load_official(official / 'stage1.pt')


@pytest.fixture(scope='module')
def merged(model):
    return merge_lora(model)


@pytest.fixture(scope='module')
def io(official):
    with np.load(official / 'stage1_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def inputs(io):
    return bfhwc(io['x']), jnp.asarray(io['timesteps']), jnp.asarray(io['context'])


@pytest.fixture(scope='module')
def layout(model, inputs):
    return SequenceLayout.from_grid(inputs[2].shape[1], patch_grid(inputs[0].shape, model.config.patch_size))


def run(network, inputs):
    graphdef, params = nnx.split(network)
    return jax.jit(lambda params: nnx.merge(graphdef, params)(*inputs))(params)


def test_stage1_parity_of_inferred_sizes_and_lora(official, model):
    expected = json.loads((official / 'stage1_config.json').read_text())
    config = model.config
    assert (config.embed_dim, config.num_layers) == (expected['hidden_size'], expected['num_layers'])
    assert (config.num_heads, config.head_dim) == (expected['num_attention_heads'], expected['head_dim'])
    assert (config.cond_dim, config.text_dim) == (expected['time_embed_dim'], expected['text_hidden_size'])
    assert not config.embed_num_frames and not config.embed_noise_augmentation_timestep
    assert config.lora == LoRAConfig(rank=expected['lora_r'])
    assert config.lora.scale == expected['lora_scaling']


def test_stage1_parity_with_separate_lora(model, io, inputs):
    close(run(model, inputs), bfhwc(io['output_before_merge']))


def test_stage1_parity_with_merged_lora(merged, io, inputs):
    assert merged.config.lora is None
    close(run(merged, inputs), bfhwc(io['output']))


def test_stage1_parity_without_lora(model, merged, io, inputs):
    base = nnx.state(model, nnx.Not(LoRAParam))
    alone = nnx.merge(nnx.graphdef(merged), nnx.from_flat_state(nnx.to_flat_state(base)))
    close(run(alone, inputs), bfhwc(io['output_without_lora']))


def test_stage1_parity_of_merged_kernels(merged, io):
    blocks = merged.blocks
    for linear, name in ((blocks.attention.qkv, 'qkv'), (blocks.attention.out, 'dense'), (blocks.modulation, 'adaln')):
        kernel = np.asarray(linear.kernel[...])[0]
        close(kernel.reshape(kernel.shape[0], -1).T, io[f'merged_{name}_layer0'])


def test_stage1_parity_of_embeddings_and_rope(merged, io, inputs, layout):
    x, timestep, text = inputs
    close(merged.time_embed(sinusoid(timestep, merged.config.embed_dim)), io['emb'])
    close(merged.embed_cond(timestep, layout.grid[0]), io['emb'])
    close(merged.embed_tokens(x, text, layout), io['tokens'])
    rope = rope_table(*layout.grid, head_dim=merged.config.head_dim)
    close(rope.cos, io['rope_cos'])
    close(rope.sin, io['rope_sin'])


def test_stage1_parity_of_each_block(model, io, layout):
    block = jax.jit(functools.partial(run_block, model), static_argnums=3)
    hidden, emb = io['tokens'], jnp.asarray(io['emb'])
    for i in range(model.config.num_layers):
        # Each block starts from the official input: an error is found where it is made.
        close(block(i, jnp.asarray(hidden), emb, layout), io[f'block_{i}'])
        hidden = io[f'block_{i}']
    close(model.final_norm(jnp.asarray(hidden)), io['after_final_layernorm'])
    close(model.head(jnp.asarray(hidden), emb, layout), bfhwc(io['output']))


# Round trip of the file. That over a checkpoint, which keeps even the unused table, is in tests/test_convert.py.


def arrays(path):
    (tensors,) = torch_zip.read(path).values()
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def assert_same(back, there):
    """Bit for bit; of what no computation reads, only the position table is written."""
    assert back.keys() <= there.keys() | {POSITION_TABLE}
    unused = ('.freqs_sin', '.freqs_cos', '.position_embeddings.weight')
    assert not [k for k in there.keys() - back.keys() if not k.endswith(unused) and not k.startswith('loss')]
    for key in back.keys() - {POSITION_TABLE}:
        assert back[key].dtype == there[key].dtype
        np.testing.assert_array_equal(back[key], there[key], err_msg=key)


@pytest.mark.parametrize('name', FILES)
def test_stage1_file_round_trip(official, tmp_path, model, name):
    network = model if name == 'stage1.pt' else load_official(official / name)
    save_official(tmp_path / name, network)
    assert_same(arrays(tmp_path / name), arrays(official / name))


@pytest.mark.parametrize('lora', ['keep', 'merge'])
def test_stage1_file_is_read_by_torch(official, tmp_path, model, merged, lora):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'back.pt'
    save_official(path, model, lora=lora)
    for mmap in (False, True):
        contents = torch.load(path, weights_only=True, mmap=mmap)
        assert contents.keys() == {'module'}
        mine = {key: tensor.numpy() for key, tensor in contents['module'].items()}
        if lora == 'keep':
            assert_same(mine, arrays(official / 'stage1.pt'))
    if lora == 'merge':
        again = load_official(path)
        assert again.config == dataclasses.replace(model.config, lora=None)
        mine, wanted = (nnx.to_flat_state(nnx.state(network)) for network in (again, merged))
        for (_, leaf), (_, expected) in zip(mine, wanted, strict=True):
            close(leaf[...], expected[...])


def test_stage1_file_with_plain_and_unused_tensors(official, tmp_path, model, merged, io, inputs):
    """Loads a file with LoRA merged into some of its linears, and with tensors that nothing reads."""
    save_official(tmp_path / 'merged.pt', merged)
    mixed, plain = arrays(official / 'stage1.pt'), arrays(tmp_path / 'merged.pt')
    for linear in ('transformer.layers.0.attention.query_key_value', 'mixins.adaln_layer.adaLN_modulations.1.1'):
        linear = f'model.diffusion_model.{linear}'
        mixed = {key: x for key, x in mixed.items() if not key.startswith(f'{linear}.')}
        mixed |= {key: x for key, x in plain.items() if key.startswith(f'{linear}.')}
    mixed |= {
        'model.diffusion_model.mixins.pos_embed.freqs_sin': np.zeros((4, 4), np.float32),
        'first_stage_model.encoder.conv_in.conv.weight': np.zeros(3, np.float32),
        'conditioner.embedders.0.shared.weight': np.zeros(3, np.float32),
    }
    specs = {key: torch_zip.TensorSpec(x.shape, x.dtype) for key, x in mixed.items()}
    torch_zip.write(tmp_path / 'mixed.pt', 'module', specs, mixed.items())
    network = load_official(tmp_path / 'mixed.pt')
    assert network.config == model.config
    close(run(network, inputs), bfhwc(io['output']))
    save_official(tmp_path / 'again.pt', network)
    back = arrays(tmp_path / 'again.pt')
    assert mixed.keys() - back.keys() == {k for k in mixed if 'freqs' in k or k.startswith(('first_', 'cond'))}
    for key in back.keys() - {POSITION_TABLE}:
        np.testing.assert_array_equal(back[key], mixed[key], err_msg=key)
