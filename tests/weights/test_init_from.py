"""Starting weights, fitted to a config with LoRA or without."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from fv_jax.core.config import ConfigError
from fv_jax.models.lora import LoRAConfig, LoRAParam, merge_lora
from fv_jax.weights import exported_network, init_dit_from_weights, save_official
from fv_jax.weights.embedded import VAE_TINY
from fv_jax.weights.layouts import key_table
from fv_jax.weights.reader import abstract_network
from tests.sampling import tiny

LORA = LoRAConfig(rank=3, targets=('qkv', 'modulation'))
PLAIN = dataclasses.replace(tiny.DIT, num_layers=2)
WITH_LORA = dataclasses.replace(PLAIN, lora=LORA)
KEY = jax.random.key(0)


def network(config):
    graphdef, abstract = nnx.split(abstract_network(config))
    return nnx.merge(graphdef, tiny.random(abstract, 0.2))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    save_official(folder / 'lora.pt', network(WITH_LORA))
    save_official(folder / 'plain.pt', network(PLAIN))
    return folder


def parameters(model):
    return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same(model, expected):
    a, b = parameters(model), parameters(expected)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_init_from_the_same_network(files):
    config = dataclasses.replace(WITH_LORA, dtype='bfloat16', remat='full')
    model = init_dit_from_weights(files / 'lora.pt', config, KEY)
    assert model.config == config
    assert_same(model, network(WITH_LORA))


def test_init_from_our_single_file(tmp_path):
    exported_network.write(tmp_path / 'own.safetensors', key_table.module_parameters(nnx.state(network(PLAIN))), PLAIN)
    rounded = jax.tree.map(lambda leaf: leaf.astype('float16').astype(leaf.dtype), nnx.state(network(PLAIN)))
    model = init_dit_from_weights(tmp_path / 'own.safetensors', dataclasses.replace(PLAIN, remat='full'), KEY)
    assert_same(model, nnx.merge(nnx.graphdef(network(PLAIN)), rounded))
    with pytest.raises(ConfigError, match=r'own.safetensors: architecture mismatch: num_layers=3 here and 2 there'):
        init_dit_from_weights(tmp_path / 'own.safetensors', dataclasses.replace(PLAIN, num_layers=3), KEY)
    with pytest.raises(ValueError, match='holds a VAE, not a DiT'):
        init_dit_from_weights(VAE_TINY, PLAIN, KEY)


def test_init_from_merges_lora_that_the_config_lacks(files):
    model = init_dit_from_weights(files / 'lora.pt', PLAIN, KEY)
    assert model.config == PLAIN
    # Product and sum are compiled apart there and together here: they round differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        nnx.to_pure_dict(nnx.state(model)),
        nnx.to_pure_dict(nnx.state(merge_lora(network(WITH_LORA)))),
    )


def test_init_from_initializes_lora_that_the_file_lacks(files):
    config = dataclasses.replace(WITH_LORA, param_dtype='bfloat16')
    model = init_dit_from_weights(files / 'plain.pt', config, KEY)
    assert model.config == config and model.text_embed.kernel.dtype == jax.numpy.bfloat16
    matrices = dict(nnx.to_flat_state(nnx.state(model, LoRAParam)))
    assert len(matrices) == 4
    for path, leaf in matrices.items():
        assert leaf.dtype == np.float32 and bool(np.any(leaf[...])) == (path[-1] == 'a')
    base = network(PLAIN).blocks.mlp_norm.scale[...].astype(jax.numpy.bfloat16)
    np.testing.assert_array_equal(model.blocks.mlp_norm.scale[...], base)


def test_init_from_rescales_lora_to_another_alpha(files):
    config = dataclasses.replace(WITH_LORA, lora=dataclasses.replace(LORA, alpha=4.0))
    merged = merge_lora(init_dit_from_weights(files / 'lora.pt', config, KEY))
    np.testing.assert_allclose(
        merged.blocks.attention.qkv.kernel[...],
        merge_lora(network(WITH_LORA)).blocks.attention.qkv.kernel[...],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'mlp_dim': 64, 'num_layers': 3}, 'num_layers=3 here and 2 there; mlp_dim=64 here and 32 there'),
        ({'lora': LoRAConfig(rank=4, targets=LORA.targets)}, 'lora.rank=4, .*lora.pt has rank 3 on qkv, modulation'),
        ({'embed_num_frames': False}, 'embed_num_frames=False here and True there'),
    ],
)
def test_init_from_refuses_another_network(files, change, message):
    with pytest.raises(ConfigError, match=message):
        init_dit_from_weights(files / 'lora.pt', dataclasses.replace(WITH_LORA, **change), KEY)
