"""A T5 folder to our T5 and back: one file or several, every key accounted for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fv_jax.models.t5 import T5Config
from fv_jax.weights.formats.memory_map import Storage, StoredTensor
from fv_jax.weights.layouts import key_table, t5_folder
from tests.small_text import SMALL, make_folder, random_t5

LAYER1 = 'encoder.block.1.layer.'


def leaves(model) -> dict[str, np.ndarray]:
    return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same(a, b) -> None:
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / 't5')


def read_all(folder) -> dict[str, np.ndarray]:
    return {key: np.array(array) for key, array in load_file(folder / t5_folder.SINGLE).items()}


def test_t5_folder_round_trip(folder):
    model = t5_folder.load(folder)
    assert model.config == SMALL
    assert_same(model, random_t5())
    arrays = read_all(folder)
    assert arrays[f'{LAYER1}1.DenseReluDense.wi_0.weight'].shape == (SMALL.mlp_dim, SMALL.embed_dim)
    np.testing.assert_array_equal(model.blocks.gate.kernel[1], arrays[f'{LAYER1}1.DenseReluDense.wi_0.weight'].T)
    np.testing.assert_array_equal(model.blocks.v.kernel[1], arrays[f'{LAYER1}0.SelfAttention.v.weight'].T)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


def test_t5_folder_of_several_files(tmp_path):
    single, several = make_folder(tmp_path / 'one'), make_folder(tmp_path / 'many', shard_bytes=3000)
    files = sorted(path.name for path in several.glob('*.safetensors'))
    assert files == [f'model-{i:05d}-of-00004.safetensors' for i in range(1, 5)]
    arrays = {name: load_file(several / name) for name in files}
    index = json.loads((several / t5_folder.INDEX).read_text())
    assert index['weight_map'] == {key: name for name, part in arrays.items() for key in part}
    total = [sum(x.nbytes for x in part.values()) for part in arrays.values()]
    assert index['metadata']['total_size'] == sum(total) and max(total) <= 3000
    assert_same(t5_folder.load(several), t5_folder.load(single))
    # Written over one another, a folder holds one kind only.
    t5_folder.save(several, random_t5())
    t5_folder.save(single, random_t5(), shard_bytes=3000)
    assert not (several / t5_folder.INDEX).exists() and not (single / t5_folder.SINGLE).exists()
    assert_same(t5_folder.load(several), t5_folder.load(single))


def test_t5_folder_dtypes(tmp_path):
    folder = make_folder(tmp_path, dataclasses.replace(SMALL, param_dtype='bfloat16'))
    assert {array.dtype for array in read_all(folder).values()} == {np.dtype(ml_dtypes.bfloat16)}
    half, full = t5_folder.load(folder, dtype='bfloat16', param_dtype='bfloat16'), t5_folder.load(folder)
    assert half.config.dtype == half.config.param_dtype == 'bfloat16' and full.config == SMALL
    assert {array.dtype for array in leaves(half).values()} == {jnp.dtype('bfloat16')}
    assert {array.dtype for array in leaves(full).values()} == {np.dtype(np.float32)}
    assert_same(full, half)


def test_t5_folder_full_size_keys():
    """The tensors of T5 v1.1 XXL, as Hugging Face names them, are what the table asks for: no more, no less."""
    attention, mlp = 'layer.0.SelfAttention', 'layer.1.DenseReluDense'
    shapes = {f'{attention}.{x}': (4096, 4096) for x in 'qkvo'} | {f'layer.{i}.layer_norm': (4096,) for i in (0, 1)}
    shapes |= {f'{mlp}.wi_0': (10240, 4096), f'{mlp}.wi_1': (10240, 4096), f'{mlp}.wo': (4096, 10240)}
    shapes = {f'encoder.block.{i}.{key}': shape for i in range(24) for key, shape in shapes.items()}
    shapes |= {f'encoder.block.0.{attention}.relative_attention_bias': (32, 64)}
    shapes |= {'shared': (32128, 4096), 'encoder.final_layer_norm': (4096,)}
    tensors = {
        f'{key}.weight': StoredTensor(
            shape, np.dtype(np.float16), Storage(np.zeros(1, np.float16)), 0, (0,) * len(shape)
        )
        for key, shape in shapes.items()
    }
    assert len(tensors) == 219
    key_table.check_keys('xxl', tensors, t5_folder.table(T5Config()))
    # And the way back names every one of them again.
    assert t5_folder.table(T5Config()).keys() == {key: tensor.shape for key, tensor in tensors.items()}


def test_t5_folder_tied_embedding(folder):
    arrays = read_all(folder)
    expected = random_t5()
    for extra in (
        {t5_folder.TIED: arrays[t5_folder.SHARED]},
        {'decoder.block.0.x': np.zeros(2), 'lm_head.weight': np.zeros(3)},
    ):
        save_file(arrays | extra, folder / t5_folder.SINGLE)
        assert_same(t5_folder.load(folder), expected)
    save_file(
        {t5_folder.TIED if key == t5_folder.SHARED else key: x for key, x in arrays.items()}, folder / t5_folder.SINGLE
    )
    assert_same(t5_folder.load(folder), expected)
    save_file(arrays | {t5_folder.TIED: arrays[t5_folder.SHARED] + 1}, folder / t5_folder.SINGLE)
    with pytest.raises(ValueError, match='must be equal, as they are one tensor of a T5'):
        t5_folder.load(folder)


def test_t5_folder_lists_all_mismatched_tensors(folder):
    arrays = read_all(folder)
    del arrays[f'{LAYER1}0.SelfAttention.q.weight']
    arrays[f'{LAYER1}0.SelfAttention.q.bias'] = np.zeros(15, np.float32)
    arrays['encoder.final_layer_norm.weight'] = np.zeros(11, np.float32)
    save_file(arrays, folder / t5_folder.SINGLE)
    with pytest.raises(ValueError) as error:
        t5_folder.load(folder)
    assert str(error.value).splitlines()[1:] == [
        '1 unknown:',
        f'  {LAYER1}0.SelfAttention.q.bias',
        '1 missing:',
        f'  {LAYER1}0.SelfAttention.q.weight',
        '1 mismatched:',
        '  encoder.final_layer_norm.weight: (11,) float32, expected (12,) floating point',
    ]


def test_t5_folder_with_another_number_of_layers_is_refused(folder):
    config = json.loads((folder / 'config.json').read_text())
    for layers, words in ((3, r'9 missing:\n  encoder\.block\.2'), (1, r'9 unknown:\n  encoder\.block\.1')):
        (folder / 'config.json').write_text(json.dumps(config | {'num_layers': layers}))
        with pytest.raises(ValueError, match=words):
            t5_folder.load(folder)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'feed_forward_proj': 'relu'}, "not a T5 v1.1.*'relu'"),
        ({'model_type': 'bert'}, "not a T5 v1.1: model_type is 'bert'"),
        ({'d_kv': None}, 'has no d_kv'),
        ({'num_heads': 0}, 'config.json: num_heads=0: must be at least 1'),
    ],
)
def test_t5_folder_other_configs_are_refused(folder, change, words):
    config = json.loads((folder / 'config.json').read_text()) | change
    (folder / 'config.json').write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=words):
        t5_folder.load(folder)


def test_t5_folder_old_configs(folder):
    config = json.loads((folder / 'config.json').read_text())
    for key in ('relative_attention_num_buckets', 'relative_attention_max_distance', 'layer_norm_epsilon'):
        del config[key]
    (folder / 'config.json').write_text(json.dumps(config))
    assert t5_folder.read_config(folder) == SMALL


def test_t5_folder_incomplete_is_refused(tmp_path):
    folder = make_folder(tmp_path / 't5', shard_bytes=3000)
    index = json.loads((folder / t5_folder.INDEX).read_text())
    lost = 'model-00002-of-00004.safetensors'
    weight_map = {key: name for key, name in index['weight_map'].items() if name != lost}
    (folder / t5_folder.INDEX).write_text(json.dumps({'weight_map': weight_map}))
    with pytest.raises(ValueError, match=r'\d+ missing:\n  encoder'):
        t5_folder.load(folder)
    (folder / t5_folder.INDEX).write_text(json.dumps(index))
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        t5_folder.load(folder)
    for path in (*folder.glob('*.safetensors'), folder / t5_folder.INDEX):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r'holds no \.safetensors file'):
        t5_folder.load(folder)
    (folder / 'config.json').write_text('{')
    with pytest.raises(ValueError, match=r'config\.json: not JSON'):
        t5_folder.load(folder)
    with pytest.raises(FileNotFoundError):
        t5_folder.load(tmp_path / 'none')
