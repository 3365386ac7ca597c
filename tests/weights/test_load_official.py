"""Whole networks: sizes read from shapes, all official keys accounted for, other files refused."""

import ast
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from fv_jax.models.dit import STAGE1, STAGE2, DiT, DiTConfig
from fv_jax.models.vae import OFFICIAL, VAE, VAEConfig
from fv_jax.weights import dit, keymap, load_official, vae
from fv_jax.weights.torch_file import StoredTensor

SMALL = DiTConfig(
    latent_channels=3,
    embed_dim=32,
    num_layers=2,
    num_heads=2,
    mlp_dim=48,
    cond_dim=8,
    text_dim=5,
    embed_num_frames=False,
)
SMALL_VAE = VAEConfig(base_channels=32, multipliers=(1, 2, 2, 3), num_res_blocks=1, latent_channels=5)


def full_size_tensors():
    """Keys and shapes of the three full-size files, without values."""
    files, current = {}, None
    for line in (pathlib.Path(__file__).parent / 'full_size_keys.txt').read_text().splitlines():
        if heading := re.match(r'## (\w+):', line):
            current = files.setdefault(heading[1], {})
        elif row := re.match(r'\| `(\S+)` \| (\[[\d, ]*\]) \|(?: (\d+) \|)?', line):
            key, shape = row[1], tuple(ast.literal_eval(row[2]))
            tensor = StoredTensor(shape, np.dtype(np.float32), np.zeros(1, np.float32), 0, (0,) * len(shape))
            for i in range(int(row[3] or 1)):
                current[key.replace('{i}', str(i))] = tensor
    return files


@pytest.fixture(scope='module')
def full_size():
    return full_size_tensors()


def merged(stage1):
    """Stage 1's keys once its low-rank matrices are part of the weights."""
    return {key.replace('.original.', '.'): x for key, x in stage1.items() if '.matrix_' not in key}


def test_full_size_stage_2_is_accounted_for(full_size):
    tensors = full_size['stage2']
    assert len(tensors) == 565
    assert dit.infer_config(tensors) == STAGE2
    keymap.check('stage2.pt', tensors, dit.table(STAGE2), STAGE2.num_layers)


def test_full_size_stage_1_is_accounted_for(full_size):
    tensors = merged(full_size['stage1'])
    assert len(full_size['stage1']) == 1193
    assert dit.infer_config(tensors) == STAGE1
    keymap.check('stage1.pt', tensors, dit.table(STAGE1), STAGE1.num_layers)


def test_full_size_vae_is_accounted_for(full_size):
    tensors = full_size['VAE']
    assert len(tensors) == 436
    assert vae.infer_config(tensors) == OFFICIAL
    keymap.check('3d-vae.pt', tensors, vae.table(OFFICIAL), 0)


def random_arrays(rows, layers):
    rng = np.random.default_rng(0)
    return {
        key.replace('{i}', str(i)): rng.standard_normal(shape).astype(np.float32)
        for row in rows
        for i in range(layers if '{i}' in row.official[0][0] else 1)
        for key, shape in row.official
    }


def test_a_dit_file_gives_a_network_that_runs(torch_files):
    arrays = random_arrays(dit.table(SMALL), SMALL.num_layers)
    model = load_official(torch_files.save('module', arrays))
    assert isinstance(model, DiT)
    assert model.config == SMALL
    out = jax.eval_shape(
        model,
        np.zeros((1, 2, 4, 4, 3), np.float32),
        np.zeros(1, np.float32),
        np.zeros((1, 3, 5), np.float32),
        np.zeros(1),
    )
    assert out.shape == (1, 2, 4, 4, 3)
    layer1 = arrays['model.diffusion_model.transformer.layers.1.attention.query_key_value.weight']
    np.testing.assert_array_equal(model.blocks.attention.qkv.kernel[1, :, 2], layer1[64:].T)  # v's rows


def test_a_vae_file_gives_a_network(torch_files):
    arrays = random_arrays(vae.table(SMALL_VAE), 0)
    model = load_official(torch_files.save('state_dict', arrays | {'loss.logvar': np.zeros((), np.float32)}))
    assert isinstance(model, VAE)
    assert model.config == SMALL_VAE
    # The official decoder counts levels from the finest: its level 0 is our last.
    finest = arrays['decoder.up.0.block.0.conv1.conv.weight']
    np.testing.assert_array_equal(model.decoder.up[3][0].conv1.kernel[...], finest.transpose(2, 3, 4, 1, 0))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


def test_missing_unknown_and_misshapen_tensors_of_a_dit_are_named(torch_files):
    arrays = random_arrays(dit.table(SMALL), SMALL.num_layers)
    prefix = 'model.diffusion_model.'
    del arrays[f'{prefix}mixins.patch_embed.proj.bias']
    arrays[f'{prefix}transformer.final_layernorm.weight'] = np.zeros(31, np.float32)
    arrays[f'{prefix}transformer.layers.1.attention.dense.matrix_A.0'] = np.zeros((4, 32), np.float32)
    with pytest.raises(ValueError) as error:
        load_official(torch_files.save('module', arrays))
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        '1 unknown:',
        f'  {prefix}transformer.layers.1.attention.dense.matrix_A.0',
        '1 missing:',
        f'  {prefix}mixins.patch_embed.proj.bias',
        '1 misshapen:',
        f'  {prefix}transformer.final_layernorm.weight: (31,) float32, expected (32,) floating point',
    ]


@pytest.mark.parametrize('outer', ['module', 'state_dict', 'model'])
def test_a_file_of_another_kind_is_refused(torch_files, outer):
    path = torch_files.save(outer, {'something.weight': np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=f"neither a DiT.*nor a VAE.*it has '{outer}'"):
        load_official(path)
