"""Whole networks: sizes read from shapes, all official keys accounted for in both directions, other files refused."""

import ast
import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from fv_jax.models.dit import STAGE1, STAGE2, DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, merge_lora
from fv_jax.models.vae import OFFICIAL, VAE, VAEConfig
from fv_jax.weights import load_official, reader, save_official
from fv_jax.weights.formats.memory_map import Storage, StoredTensor
from fv_jax.weights.layouts import key_table, official_dit, official_vae
from fv_jax.weights.layouts.key_table import KeyTable, Parameter

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
            tensor = StoredTensor(shape, np.dtype(np.float32), Storage(np.zeros(1, np.float32)), 0, (0,) * len(shape))
            for i in range(int(row[3] or 1)):
                current[key.replace('{i}', str(i))] = tensor
    return files


@pytest.fixture(scope='module')
def full_size():
    return full_size_tensors()


def merge_tensors(stage1):
    """Stage 1's keys once its low-rank matrices are part of the weights."""
    return {key.replace('.original.', '.'): x for key, x in stage1.items() if '.matrix_' not in key}


STAGE1_LORA = dataclasses.replace(STAGE1, lora=LoRAConfig())
FULL_SIZE = [('stage1', 1193, STAGE1_LORA), ('stage2', 565, STAGE2), ('VAE', 436, OFFICIAL)]


def full_size_table(name, tensors, config):
    if name == 'VAE':
        assert official_vae.infer_config(tensors) == config
        return KeyTable(official_vae.table(config))
    found, table = official_dit.infer_config_and_table(tensors, 'float32')
    assert found == config
    return table


@pytest.mark.parametrize(('name', 'count', 'config'), FULL_SIZE)
def test_official_keys_full_size_are_all_mapped(full_size, name, count, config):
    tensors = full_size[name]
    assert len(tensors) == count
    table = full_size_table(name, tensors, config)
    key_table.check_keys(name, tensors, table)
    # The rows are the abstract network's parameters, each of as many numbers as the tensors that make it.
    leaves = key_table.named_parameters(nnx.state(reader.abstract_network(config)))
    assert leaves.keys() == {row.path for row in table.rows}
    for row in table.rows:
        made_of = sum(int(np.prod(shape)) for i in table.layers_of(row) for _, shape in table.tensors(row, i))
        assert leaves[row.path][1].size == made_of, row.path


@pytest.mark.parametrize(('name', 'count', 'config'), FULL_SIZE)
def test_official_keys_full_size_are_all_written(full_size, name, count, config):
    leaves = key_table.named_parameters(nnx.state(reader.abstract_network(config)))
    dtype = np.dtype(np.float32)
    values = {key: Parameter(leaf.shape, dtype, lambda: np.ones((1,), dtype)) for key, (_, leaf) in leaves.items()}
    specs, _ = key_table.to_official(values, full_size_table(name, full_size[name], config))
    produced = {key: spec.shape for key, spec in specs.items()}
    if name != 'VAE':
        produced |= {key: x.shape for key, x in official_dit.position_table(config, dtype).items()}
    assert produced == {key: tensor.shape for key, tensor in full_size[name].items()}


def test_official_keys_of_stage_1_with_merged_lora(full_size):
    tensors = merge_tensors(full_size['stage1'])
    config, table = official_dit.infer_config_and_table(tensors, 'float32')
    assert config == STAGE1
    key_table.check_keys('stage1.pt', tensors, table)


def test_official_keys_of_stage_1_with_lora_in_some_layers(full_size):
    """Merged in the first half of the layers' attention outputs, and in all of q, k, v."""

    def is_plain(key):
        layer = re.search(r'layers\.(\d+)\.attention\.(dense|query_key_value)\.', key)
        return layer and (layer[2] == 'query_key_value' or int(layer[1]) < 21)

    stage1 = full_size['stage1']
    tensors = {key: x for key, x in stage1.items() if not is_plain(key)}
    tensors |= merge_tensors({key: x for key, x in stage1.items() if is_plain(key)})
    config, table = official_dit.infer_config_and_table(tensors, 'bfloat16')
    lora = LoRAConfig(targets=('attention_out', 'modulation'))
    assert config == dataclasses.replace(STAGE1, lora=lora, param_dtype='bfloat16')
    key_table.check_keys('stage1.pt', tensors, table)
    assert table.keys() == {
        key: x.shape for key, x in tensors.items() if not key.endswith('position_embeddings.weight')
    }
    # A pair with only one of its matrices is an error, not zero.
    del tensors['model.diffusion_model.transformer.layers.30.attention.dense.matrix_B.0']
    with pytest.raises(key_table.KeyMismatchError, match=r'1 missing:\n  .*layers.30.attention.dense.matrix_B.0'):
        key_table.check_keys('stage1.pt', tensors, official_dit.infer_config_and_table(tensors, 'float32')[1])


def random_arrays(rows, layers):
    rng = np.random.default_rng(0)
    return {
        key.replace('{i}', str(i)): rng.standard_normal(shape).astype(np.float32)
        for row in rows
        for i in range(layers if '{i}' in row.official[0][0] else 1)
        for key, shape in row.official
    }


def test_load_official_dit(torch_files):
    arrays = random_arrays(official_dit.table(SMALL), SMALL.num_layers)
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


def test_load_official_vae(torch_files):
    arrays = random_arrays(official_vae.table(SMALL_VAE), 0)
    model = load_official(torch_files.save('state_dict', arrays | {'loss.logvar': np.zeros((), np.float32)}))
    assert isinstance(model, VAE)
    assert model.config == SMALL_VAE
    # The official decoder counts levels from the finest: its level 0 is our last.
    finest = arrays['decoder.up.0.block.0.conv1.conv.weight']
    np.testing.assert_array_equal(model.decoder.up[3][0].conv1.kernel[...], finest.transpose(2, 3, 4, 1, 0))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


def test_load_official_lists_all_mismatched_tensors(torch_files):
    arrays = random_arrays(official_dit.table(SMALL), SMALL.num_layers)
    prefix = 'model.diffusion_model.'
    del arrays[f'{prefix}mixins.patch_embed.proj.bias']
    arrays[f'{prefix}transformer.final_layernorm.weight'] = np.zeros(31, np.float32)
    arrays[f'{prefix}transformer.layers.2.attention.dense.weight'] = np.zeros((4, 32), np.float32)
    with pytest.raises(ValueError) as error:
        load_official(torch_files.save('module', arrays))
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        '1 unknown:',
        f'  {prefix}transformer.layers.2.attention.dense.weight',
        '1 missing:',
        f'  {prefix}mixins.patch_embed.proj.bias',
        '1 mismatched:',
        f'  {prefix}transformer.final_layernorm.weight: (31,) float32, expected (32,) floating point',
    ]


@pytest.mark.parametrize('outer', ['module', 'state_dict', 'model'])
def test_load_official_refuses_other_files(torch_files, outer):
    path = torch_files.save(outer, {'something.weight': np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=f"neither a DiT.*nor a VAE.*it has '{outer}'"):
        load_official(path)


LORA = LoRAConfig(rank=4, alpha=2.0, targets=('qkv', 'mlp'))


@pytest.fixture
def add_lora_tensors():
    """Random numbers, and in the last layer no LoRA on the first linear of the MLP."""
    config = dataclasses.replace(SMALL, lora=LORA)
    graphdef, abstract = nnx.split(reader.abstract_network(config))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), abstract)
    network = nnx.merge(graphdef, jax.tree.map(jax.numpy.asarray, state))
    for matrix in (network.blocks.mlp.hidden.lora.a, network.blocks.mlp.hidden.lora.b):
        matrix[...] = matrix[...].at[-1].set(0)
    return network


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
def test_save_official_lora_on_any_linear_with_any_alpha(add_lora_tensors, tmp_path, suffix):
    path = tmp_path / f'weights{suffix}'
    save_official(path, add_lora_tensors)
    source = reader.open_weights(path)
    # The official scale is 1 / rank: alpha has become a part of B.
    assert source.config == dataclasses.replace(SMALL, lora=dataclasses.replace(LORA, alpha=1.0))
    last, mlp = SMALL.num_layers - 1, 'model.diffusion_model.transformer.layers.{}.mlp.dense_h_to_4h.'
    assert f'{mlp.format(last)}weight' in source.tensors and f'{mlp.format(last)}matrix_A.0' not in source.tensors
    assert f'{mlp.format(0)}matrix_A.0' in source.tensors
    back = source.network().blocks
    np.testing.assert_array_equal(back.mlp.out.lora.a[...], add_lora_tensors.blocks.mlp.out.lora.a[...])
    np.testing.assert_array_equal(back.mlp.out.lora.b[...], 2 * add_lora_tensors.blocks.mlp.out.lora.b[...])
    np.testing.assert_array_equal(back.mlp.hidden.lora.b[...], 2 * add_lora_tensors.blocks.mlp.hidden.lora.b[...])


def test_save_official_merges_lora(add_lora_tensors, tmp_path):
    save_official(tmp_path / 'before.pt', merge_lora(add_lora_tensors))
    save_official(tmp_path / 'on_the_way.pt', add_lora_tensors, lora='merge')
    before, on_the_way = (reader.open_weights(tmp_path / f'{name}.pt') for name in ('before', 'on_the_way'))
    assert before.config == on_the_way.config == SMALL
    for key, tensor in before.tensors.items():  # compiled otherwise, and thus rounded otherwise
        np.testing.assert_allclose(on_the_way.tensors[key].numpy(), tensor.numpy(), rtol=0, atol=1e-5, err_msg=key)


def test_load_official_in_bfloat16(add_lora_tensors, tmp_path):
    save_official(tmp_path / 'weights.pt', add_lora_tensors, dtype='bfloat16')
    assert reader.stored_dtype(reader.open_weights(tmp_path / 'weights.pt').tensors) == 'bfloat16'
    network = load_official(tmp_path / 'weights.pt', param_dtype='bfloat16')
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        assert leaf.dtype == (np.float32 if 'lora' in path else jax.numpy.bfloat16), path


def test_save_official_is_atomic(add_lora_tensors, tmp_path):
    path = tmp_path / 'weights.pt'
    path.write_text('before')
    add_lora_tensors.blocks.mlp.out.lora.b = None  # not a whole network
    with pytest.raises(KeyError):
        save_official(path, add_lora_tensors)
    assert path.read_text() == 'before' and list(tmp_path.iterdir()) == [path]


def report(hidden, out):
    kernels = {'frames_embed.hidden.kernel': hidden, 'frames_embed.out.kernel': out}
    return official_dit.frames_embedding_report(
        {name: Parameter((2, 2), np.dtype(np.float32), lambda x=x: np.full((2, 2), x)) for name, x in kernels.items()}
    )


def test_frames_embedding_report():
    assert 'both kernels are exactly zero' in report(0, 0) and 'no gradient reaches them' in report(0, 0)
    assert 'the second kernel is exactly zero' in report(1, 0) and 'no gradient' not in report(1, 0)
    assert 'the first kernel is exactly zero' in report(0, 1)
    assert 'the network receives the length of a clip' in report(1e-9, 0.5)
    assert official_dit.frames_embedding_report({}) is None
