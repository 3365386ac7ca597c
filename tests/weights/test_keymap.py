"""The mapping engine: sizes by majority, one error for everything, layers stacked."""

import numpy as np
import pytest
from flax import nnx

from fv_jax.core import axes
from fv_jax.weights import keymap
from fv_jax.weights.torch_file import StoredTensor


class Net(nnx.Module):
    """Two layers of 2 -> 3, stacked, and a norm."""

    def __init__(self):
        self.kernel = axes.param(np.zeros((2, 2, 3), np.float32), (None, None, None))
        self.bias = axes.param(np.zeros((2, 3), np.float32), (None, None))
        self.scale = axes.param(np.zeros(3, np.float32), (None,))


ROWS = [
    keymap.Row('kernel', (('layer.{i}.weight', (3, 2)),), keymap.linear),
    keymap.Row('bias', (('layer.{i}.bias', (3,)),), keymap.vector),
    # Made of two tensors, as a linear with a low-rank addition will be.
    keymap.Row('scale', (('norm.weight', (3,)), ('norm.extra', (3,))), lambda weight, extra: weight + 2 * extra),
]


def stored(array):
    array = np.asarray(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return StoredTensor(array.shape, array.dtype, array.reshape(-1), 0, strides)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {'layer.0.weight': (3, 2), 'layer.0.bias': (3,), 'layer.1.weight': (3, 2), 'layer.1.bias': (3,)}
    shapes |= {'norm.weight': (3,), 'norm.extra': (3,)}
    return {key: rng.standard_normal(shape).astype(np.float16) for key, shape in shapes.items()}


def load(arrays):
    return keymap.load('file.pt', {key: stored(x) for key, x in arrays.items()}, ROWS, 2, Net)


def test_values_arrive_transposed_stacked_combined_and_in_float32(arrays):
    net = load(arrays)
    for i in range(2):
        np.testing.assert_array_equal(net.kernel[i], arrays[f'layer.{i}.weight'].astype(np.float32).T)
        np.testing.assert_array_equal(net.bias[i], arrays[f'layer.{i}.bias'].astype(np.float32))
    expected = arrays['norm.weight'].astype(np.float32) + 2 * arrays['norm.extra'].astype(np.float32)
    np.testing.assert_array_equal(net.scale[...], expected)
    assert {str(leaf.dtype) for _, leaf in nnx.to_flat_state(nnx.state(net))} == {'float32'}


def test_all_that_is_wrong_is_listed_at_once(arrays):
    del arrays['layer.0.bias'], arrays['norm.extra']
    arrays |= {'layer.2.bias': np.zeros(3), 'other': np.zeros(3), 'layer.1.weight': np.zeros((2, 3))}
    arrays['norm.weight'] = np.zeros(3, np.int64)
    with pytest.raises(ValueError) as error:
        load(arrays)
    assert str(error.value) == (
        'file.pt: not the tensors of the network that its shapes imply\n'
        '2 unknown:\n  layer.2.bias\n  other\n'
        '2 missing:\n  layer.0.bias\n  norm.extra\n'
        '2 misshapen:\n'
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
def test_known_unused_keys_are_passed_over(arrays, key):
    load(arrays | {key: np.zeros(3)})
    with pytest.raises(ValueError, match=r'1 unknown:\n  my_'):
        load(arrays | {f'my_{key.rpartition(".")[2]}': np.zeros(3)})


def test_conv_kernels_become_channels_last():
    x = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    assert keymap.conv(x).shape == (4, 5, 6, 3, 2)
    assert keymap.conv(x)[1, 2, 3, 2, 1] == x[1, 2, 1, 2, 3]


def test_a_patch_convolution_becomes_a_linear_of_channel_row_column():
    x = np.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2)
    assert keymap.linear(x).shape == (12, 5)
    assert keymap.linear(x)[(1 * 2 + 1) * 2 + 0, 4] == x[4, 1, 1, 0]


def test_the_common_size_outvotes_a_misshapen_tensor():
    tensors = {f'layer.{i}.weight': stored(np.zeros((3, 2))) for i in range(3)} | {'norm': stored(np.zeros(4))}
    assert keymap.common_size(tensors, [('norm', 0), ('layer.*.weight', 0)], default=9) == 3
    assert keymap.common_size(tensors, [('layer.*.weight', 1)], default=9) == 2
    assert keymap.common_size(tensors, [('nothing', 0), ('norm', 1)], default=9) == 9


def test_the_common_count():
    tensors = {f'a.{i}.x': None for i in range(12)} | {f'b.{i}': None for i in range(12)} | {'c.99': None}
    assert keymap.common_count(tensors, ['a.{i}.x', 'b.{i}', 'c.{i}'], default=5) == 12
    assert keymap.common_count(tensors, ['d.{i}'], default=5) == 5
