"""The mapping engine: sizes by majority, one error for everything, layers stacked, and back again."""

import numpy as np
import pytest
from flax import nnx

from fv_jax.core import axes
from fv_jax.weights.formats.memory_map import Storage, StoredTensor
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import KeyTable, TensorMapping, TensorTransform


class Net(nnx.Module):
    """Two layers of 2 -> 3, stacked, and a norm."""

    def __init__(self):
        self.kernel = axes.param(np.zeros((2, 2, 3), np.float32), (None, None, None))
        self.bias = axes.param(np.zeros((2, 3), np.float32), (None, None))
        self.scale = axes.param(np.zeros(3, np.float32), (None,))


# The mean and half of the difference: a parameter of two tensors.
MEAN = TensorTransform(lambda a, b: (a + b) / 2, lambda p, shapes: (p - 1, p + 1))
TABLE = KeyTable(
    [
        TensorMapping('kernel', (('layer.{i}.weight', (3, 2)),), key_table.linear),
        TensorMapping('bias', (('layer.{i}.bias', (3,)),), key_table.vector),
        TensorMapping('scale', (('norm.weight', (3,)), ('norm.extra', (3,))), MEAN),
    ],
    layers=2,
)


def stored(array):
    array = np.asarray(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return StoredTensor(array.shape, array.dtype, Storage(array.reshape(-1)), 0, strides)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {'layer.0.weight': (3, 2), 'layer.0.bias': (3,), 'layer.1.weight': (3, 2), 'layer.1.bias': (3,)}
    shapes |= {'norm.weight': (3,), 'norm.extra': (3,)}
    return {key: rng.standard_normal(shape).astype(np.float16) for key, shape in shapes.items()}


def load(arrays, table=TABLE):
    tensors = {key: stored(x) for key, x in arrays.items()}
    key_table.check_keys('file.pt', tensors, table)
    specs = {name: leaf for name, (_, leaf) in key_table.named_parameters(nnx.state(nnx.eval_shape(Net))).items()}
    return key_table.build_module(nnx.eval_shape(Net), key_table.from_official(tensors, table, specs))


def test_from_official_transposes_stacks_and_casts(arrays):
    net = load(arrays)
    for i in range(2):
        np.testing.assert_array_equal(net.kernel[i], arrays[f'layer.{i}.weight'].astype(np.float32).T)
        np.testing.assert_array_equal(net.bias[i], arrays[f'layer.{i}.bias'].astype(np.float32))
    np.testing.assert_array_equal(net.scale[...], (arrays['norm.weight'] + arrays['norm.extra']) / 2)
    assert {str(leaf.dtype) for _, leaf in nnx.to_flat_state(nnx.state(net))} == {'float32'}


def test_to_official_inverts_from_official(arrays):
    arrays['norm.extra'] = arrays['norm.weight'] + 2
    values = key_table.module_parameters(nnx.state(load(arrays)))
    specs, tensors = key_table.to_official(values, TABLE)
    back = dict(tensors)
    assert specs.keys() == back.keys() == arrays.keys()
    for key, array in arrays.items():
        assert (back[key].shape, back[key].dtype) == (specs[key].shape, specs[key].dtype) == (array.shape, np.float32)
        assert back[key].flags.c_contiguous
        np.testing.assert_allclose(back[key], array, atol=2e-3 if 'norm' in key else 0)
    _, tensors = key_table.to_official(values, TABLE, np.dtype(np.float16))
    assert {tensor.dtype for _, tensor in tensors} == {np.dtype(np.float16)}


def test_to_official_refuses_other_parameters(arrays):
    values = key_table.module_parameters(nnx.state(load(arrays)))
    values['more'] = values.pop('bias')
    with pytest.raises(ValueError, match='parameters do not match the network: bias, more'):
        key_table.to_official(values, TABLE)


def test_key_table_names_and_absent_tensors(arrays):
    names = {'layer.1.weight': 'layer.1.plain', 'layer.0.bias': None}
    table = KeyTable(TABLE.rows, 2, names)
    arrays['layer.1.plain'] = arrays.pop('layer.1.weight')
    del arrays['layer.0.bias']
    net = load(arrays, table)
    np.testing.assert_array_equal(net.kernel[1], arrays['layer.1.plain'].astype(np.float32).T)
    np.testing.assert_array_equal(net.bias[0], np.zeros(3))
    specs, tensors = key_table.to_official(key_table.module_parameters(nnx.state(net)), table)
    assert specs.keys() == dict(tensors).keys() == arrays.keys()
    del arrays['layer.1.plain']
    with pytest.raises(key_table.KeyMismatchError, match=r'1 missing:\n  layer.1.plain'):
        load(arrays, table)


def test_from_official_is_lazy():
    made = []
    lazy = {'kernel': (2, 2, 3), 'bias': (2, 3), 'scale': (3,)}
    values = {
        name: key_table.Parameter(shape, np.dtype(np.float32), lambda n=name, s=shape: made.append(n) or np.zeros(s))
        for name, shape in lazy.items()
    }
    _, tensors = key_table.to_official(values, TABLE)
    assert not made
    assert next(tensors)[0] == 'layer.0.weight' and made == ['kernel']


def test_check_keys_lists_all_mismatches(arrays):
    del arrays['layer.0.bias'], arrays['norm.extra']
    arrays |= {'layer.2.bias': np.zeros(3), 'other': np.zeros(3), 'layer.1.weight': np.zeros((2, 3))}
    arrays['norm.weight'] = np.zeros(3, np.int64)
    with pytest.raises(ValueError) as error:
        load(arrays)
    assert str(error.value) == (
        'file.pt: tensor names or shapes do not match the network\n'
        '2 unknown:\n  layer.2.bias\n  other\n'
        '2 missing:\n  layer.0.bias\n  norm.extra\n'
        '2 mismatched:\n'
        '  layer.1.weight: (2, 3) float64, expected (3, 2) floating point\n'
        '  norm.weight: (3,) int64, expected (3,) floating point'
    )


@pytest.mark.parametrize(
    'key',
    [
        'model.diffusion_model.transformer.position_embeddings.weight',
        'model.diffusion_model.mixins.pos_embed.freqs_sin',
        'model.diffusion_model.mixins.pos_embed.freqs_cos',
        'loss.discriminator.weight',
        'first_stage_model.encoder.conv_in.conv.weight',
        'conditioner.embedders.0.transformer.shared.weight',
    ],
)
def test_check_keys_ignores_known_unused_keys(arrays, key):
    load(arrays | {key: np.zeros(3)})
    with pytest.raises(ValueError, match=r'1 unknown:\n  my_'):
        load(arrays | {f'my_{key.rpartition(".")[2]}': np.zeros(3)})


def test_conv_transform_makes_channels_last():
    x = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    made = key_table.conv.to_ours(x)
    assert made.shape == (4, 5, 6, 3, 2)
    assert made[1, 2, 3, 2, 1] == x[1, 2, 1, 2, 3]
    np.testing.assert_array_equal(key_table.conv.to_official(made, (x.shape,))[0], x)


def test_patch_transform_makes_a_linear():
    x = np.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2)
    made = key_table.linear.to_ours(x)
    assert made.shape == (12, 5)
    assert made[(1 * 2 + 1) * 2 + 0, 4] == x[4, 1, 1, 0]
    np.testing.assert_array_equal(key_table.linear.to_official(made, (x.shape,))[0], x)


def test_lora_transforms_of_three_parts():
    rng = np.random.default_rng(0)
    a, b = ([rng.standard_normal(shape) for _ in range(3)] for shape in ((2, 7), (5, 2)))
    made_a, made_b = key_table.lora_a.to_ours(*a), key_table.lora_b.to_ours(*b)
    assert made_a.shape == (7, 3, 2) and made_b.shape == (3, 2, 5)
    expected = np.concatenate([y @ x for x, y in zip(a, b, strict=True)])  # rows: q, k, v
    product = np.einsum('ipr,pro->ipo', made_a, made_b)
    np.testing.assert_allclose(product.reshape(7, 15).T, expected)
    for transform, made, parts in ((key_table.lora_a, made_a, a), (key_table.lora_b, made_b, b)):
        for mine, part in zip(transform.to_official(made, tuple(x.shape for x in parts)), parts, strict=True):
            np.testing.assert_array_equal(mine, part)


def test_common_size_is_that_of_most_tensors():
    tensors = {f'layer.{i}.weight': stored(np.zeros((3, 2))) for i in range(3)} | {'norm': stored(np.zeros(4))}
    assert key_table.common_size(tensors, [('norm', 0), ('layer.*.weight', 0)], default=9) == 3
    assert key_table.common_size(tensors, [('layer.*.weight', 1)], default=9) == 2
    assert key_table.common_size(tensors, [('nothing', 0), ('norm', 1)], default=9) == 9


def test_common_count():
    tensors = {f'a.{i}.x': None for i in range(12)} | {f'b.{i}': None for i in range(12)} | {'c.99': None}
    assert key_table.common_count(tensors, ['a.{i}.x', 'b.{i}', 'c.{i}'], default=5) == 12
    assert key_table.common_count(tensors, ['d.{i}'], default=5) == 5
