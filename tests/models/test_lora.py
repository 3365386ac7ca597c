"""LoRA: changes nothing when new, equals its merge, and is all that a filter by its type finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.models.dit import STAGE1, DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, LoRAParam, add_lora, merge_lora

LORA = LoRAConfig(rank=3, alpha=2.0, targets=('qkv', 'attention_out', 'modulation', 'mlp'))
PLAIN = DiTConfig(
    latent_channels=3, embed_dim=32, num_layers=2, num_heads=2, mlp_dim=48, cond_dim=8, text_dim=5, remat='none'
)
SMALL = dataclasses.replace(PLAIN, lora=LORA)
OFFICIAL = dataclasses.replace(STAGE1, lora=LoRAConfig())


def make(config, seed=0):
    """Every number random: a new network is the zero function."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), abstract)
    )


def abstract(config):
    return nnx.state(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))


def leaves(state):
    return {'.'.join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def inputs():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 2, 4, 4, 3)), jnp.float32)
    text = jnp.asarray(rng.standard_normal((2, 3, 5)), jnp.float32)
    return x, jnp.asarray([900.0, 100.0]), text, jnp.full(2, 675)


@pytest.fixture(scope='module')
def network():
    return make(SMALL)


@pytest.fixture(scope='module')
def merged(network):
    return merge_lora(network)


@pytest.fixture(scope='module')
def run():
    """Any network on the same inputs; one compilation per architecture."""
    compiled = {}

    def call(network):
        graphdef, params = nnx.split(network)
        key = str(network.config)
        if key not in compiled:
            compiled[key] = jax.jit(lambda params: nnx.merge(graphdef, params)(*inputs()))
        return compiled[key](params)

    return call


def test_lora_trainable_parameters_of_the_official_stage_1():
    state = abstract(OFFICIAL)
    trainable = leaves(nnx.filter_state(state, LoRAParam))
    frozen = leaves(nnx.filter_state(state, nnx.Not(LoRAParam)))
    assert {name: leaf.shape for name, leaf in trainable.items()} == {
        'blocks.attention.qkv.lora.a': (42, 3072, 3, 128),
        'blocks.attention.qkv.lora.b': (42, 3, 128, 3072),
        'blocks.attention.out.lora.a': (42, 3072, 1, 128),
        'blocks.attention.out.lora.b': (42, 1, 128, 3072),
        'blocks.modulation.lora.a': (42, 512, 1, 128),
        'blocks.modulation.lora.b': (42, 1, 128, 12, 3072),
    }
    assert sum(leaf.size for leaf in trainable.values()) == 333_053_952
    assert sum(leaf.size for leaf in frozen.values()) == 5_570_283_072
    assert frozen.keys() == leaves(abstract(STAGE1)).keys()


def test_lora_is_float32_on_a_bfloat16_network():
    state = abstract(dataclasses.replace(SMALL, param_dtype='bfloat16', dtype='bfloat16'))
    assert {leaf.dtype for leaf in leaves(nnx.filter_state(state, LoRAParam)).values()} == {jnp.dtype('float32')}
    assert {leaf.dtype for leaf in leaves(nnx.filter_state(state, nnx.Not(LoRAParam))).values()} == {
        jnp.dtype('bfloat16')
    }


def test_lora_parameters_have_logical_axes():
    for name, leaf in leaves(nnx.filter_state(abstract(SMALL), LoRAParam)).items():
        names = leaf.get_metadata('axes')
        assert len(names) == len(leaf.shape) and names[0] == axes.LAYERS, name
    named = leaves(abstract(SMALL))
    assert named['blocks.attention.qkv.lora.a'].get_metadata('axes') == ('layers', 'embed', None, None)
    assert named['blocks.attention.qkv.lora.b'].get_metadata('axes') == ('layers', None, None, 'heads')
    assert named['blocks.modulation.lora.b'].get_metadata('axes') == ('layers', None, None, None, 'modulation')
    assert named['blocks.attention.out.lora.a'].get_metadata('axes') == ('layers', 'heads', None, None)


def test_lora_initialized_does_not_change_the_network(run):
    plain = make(PLAIN)
    fresh = add_lora(plain, LORA, jax.random.key(0))
    assert fresh.config == SMALL
    np.testing.assert_array_equal(run(fresh), run(plain))
    matrices = leaves(nnx.state(fresh, LoRAParam))
    assert len(matrices) == 10
    for name, leaf in matrices.items():
        if name.endswith('.b'):
            assert not np.any(leaf[...]), name
        else:
            limit = leaf.shape[1] ** -0.5
            assert 0.8 * limit < np.abs(leaf[...]).max() <= limit, name
            assert np.abs(np.mean(leaf[...])) < 0.2 * limit, name


def test_lora_cannot_be_added_twice(network):
    with pytest.raises(ValueError, match='already has LoRA'):
        add_lora(network, LORA, jax.random.key(0))


def test_lora_merged_computes_the_same(run, network, merged):
    assert merged.config == PLAIN and merge_lora(merged) is merged
    assert not leaves(nnx.state(merged, LoRAParam))
    with_lora = run(network)
    np.testing.assert_allclose(run(merged), with_lora, rtol=0, atol=2e-5 * np.abs(with_lora).max())
    base = dict(nnx.to_flat_state(nnx.state(network, nnx.Not(LoRAParam))))
    alone = nnx.merge(nnx.graphdef(merged), nnx.from_flat_state(list(base.items())))
    assert np.abs(run(alone) - with_lora).max() > 0.1 * np.abs(with_lora).max()


def test_lora_merged_kernel_of_each_part(network, merged):
    scale = 2.0 / 3
    qkv, modulation = (leaf.kernel for leaf in (merged.blocks.attention.qkv, merged.blocks.modulation))
    kernel, a, b = (np.asarray(x[...]) for x in lora_arrays(network.blocks.attention.qkv))
    for i, part in [(i, part) for i in range(2) for part in range(3)]:
        expected = kernel[i, :, part] + scale * a[i, :, part] @ b[i, part]
        np.testing.assert_allclose(np.asarray(qkv[...])[i, :, part], expected, atol=1e-6)
    kernel, a, b = (np.asarray(x[...]) for x in lora_arrays(network.blocks.modulation))
    expected = kernel + scale * np.einsum('lir,lrpo->lipo', a[:, :, 0], b[:, 0])
    np.testing.assert_allclose(modulation[...], expected, atol=1e-6)


def lora_arrays(linear):
    return linear.kernel, linear.lora.a, linear.lora.b


def test_lora_merge_rounds_once_to_the_kernel_dtype():
    network = make(dataclasses.replace(SMALL, param_dtype='bfloat16'))
    merged = merge_lora(network)
    kernel, a, b = (np.asarray(x[...], np.float32) for x in lora_arrays(network.blocks.attention.out))
    exact = kernel + np.float32(2.0 / 3) * (a[:, :, 0] @ b[:, 0])
    assert merged.blocks.attention.out.kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged.blocks.attention.out.kernel[...], exact.astype(jnp.bfloat16))


def test_lora_forward_does_not_materialize_the_merged_kernel():
    """No array as large as a kernel is computed but the kernels themselves, which are only read."""
    wide = dataclasses.replace(SMALL, embed_dim=128)  # so that no activation is as large
    graphdef, params = nnx.split(nnx.eval_shape(lambda: DiT(wide, rngs=nnx.Rngs(0))))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs()]
    jaxpr = jax.make_jaxpr(lambda params, *x: nnx.merge(graphdef, params)(*x))(params, *shapes)
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
    made = {v.aval.shape for e in scan.params['jaxpr'].eqns for v in e.outvars}
    kernels = {(128, 3, 128), (128, 128), (8, 12, 128), (128, 48), (48, 128)}
    assert (2, 11, 3, 128) in made and not made & kernels


def test_lora_gradients_are_of_the_filtered_variables_only():
    network = add_lora(make(PLAIN), LORA, jax.random.key(0))
    graphdef, trainable, frozen = nnx.split(network, LoRAParam, ...)
    loss = jax.jit(jax.grad(lambda t: jnp.mean(jnp.square(nnx.merge(graphdef, t, frozen)(*inputs())))))
    for name, leaf in leaves(loss(trainable)).items():
        assert bool(np.any(leaf[...])) == name.endswith('.b'), name  # A has a gradient once B is not zero


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'rank': 0}, 'rank=0: must be at least 1'),
        ({'alpha': 0.0}, 'alpha=0.0: must be positive'),
        ({'targets': ()}, r'targets=\(\): must be one or more of qkv, attention_out, modulation, mlp'),
        ({'targets': ('qkv', 'qkv')}, 'each once'),
        ({'targets': ('head',)}, "'head' is not a choice"),
    ],
)
def test_lora_config_refuses_invalid_values(values, message):
    with pytest.raises(ConfigError, match=message):
        build(DiTConfig, {'lora': values})


def test_lora_config_round_trip_through_json():
    assert build(DiTConfig, to_dict(SMALL)) == SMALL
    assert build(DiTConfig, to_dict(PLAIN)) == PLAIN
