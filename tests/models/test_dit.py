"""The DiT: sizes, initialisation, structure, numerics; agreement with the official one is in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels import reference
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.dit import STAGE1, STAGE2, DiT, DiTConfig
from fv_jax.models.layers import sinusoid
from fv_jax.models.rope import rope_axis_dims
from fv_jax.models.sequence import SequenceLayout
from tests.models.single_block import run_block

SMALL = DiTConfig(latent_channels=3, embed_dim=32, num_layers=2, num_heads=2, mlp_dim=48, cond_dim=8, text_dim=5)


def make(config, seed=0):
    """A network with every parameter drawn at random, so that nothing is hidden by a zero."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), abstract)
    )


def make_inputs(batch=2, frames=3, height=4, width=6, text=4, config=SMALL, seed=1):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((batch, frames, height, width, config.latent_channels)), jnp.float32)
    context = jnp.asarray(rng.standard_normal((batch, text, config.text_dim)), jnp.float32)
    return x, jnp.linspace(900.0, 100.0, batch), context, jnp.full(batch, 675)


@pytest.fixture(scope='module')
def model():
    return make(SMALL)


@pytest.fixture(scope='module')
def inputs():
    return make_inputs()


@pytest.fixture(scope='module')
def run(model):
    """The network, compiled once per shape."""
    return jax.jit(lambda *inputs: model(*inputs))


@pytest.fixture(scope='module')
def output(run, inputs):
    return run(*inputs)


def count(config):
    abstract = nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))


def test_dit_accepts_numpy_arrays(model, inputs):
    np.testing.assert_array_equal(model(*map(np.asarray, inputs)), model(*inputs))


def test_dit_number_of_parameters_of_the_official_sizes():
    assert count(STAGE1) == 5_570_283_072
    assert count(STAGE2) == 1_696_276_288


def test_dit_number_of_parameters_with_heads_of_128():
    wide = dataclasses.replace(STAGE2, num_heads=15)
    norms = 2 * 2 * (128 - 64)  # scale and offset of queries and keys
    assert wide.head_dim == 128 and count(wide) == count(STAGE2) + STAGE2.num_layers * norms
    assert rope_axis_dims(128) == tuple(2 * part for part in rope_axis_dims(64))


def test_dit_parameters_have_logical_axes():
    abstract = nnx.eval_shape(lambda: DiT(DiTConfig(embed_dim=128, num_layers=2, num_heads=2), rngs=nnx.Rngs(0)))
    known = {value for name, value in vars(axes).items() if name.isupper()} | {None}
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        names = leaf.get_metadata('axes')
        assert len(names) == len(leaf.shape), path
        assert set(names) <= known, path
        assert (names[0] == axes.LAYERS) == (path[0] == 'blocks'), path
        named = [name for name in names if name]
        assert len(named) == len(set(named)), f'{path}: one axis twice cannot be sharded'


@pytest.fixture(scope='module')
def new_params():
    """The parameters that training from scratch starts from."""
    return jax.jit(lambda: nnx.state(DiT(SMALL, rngs=nnx.Rngs(0))))()


@pytest.fixture(scope='module')
def loss_and_grads(inputs):
    """remat -> params -> the mean squared distance of the output from 1, and its gradients; each compiled once."""
    compiled = {}

    def call(remat):
        if remat not in compiled:
            config = dataclasses.replace(SMALL, remat=remat)
            graphdef = nnx.graphdef(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))

            def loss(params):
                return jnp.mean(jnp.square(nnx.merge(graphdef, params)(*inputs) - 1))

            compiled[remat] = jax.jit(jax.value_and_grad(loss))
        return compiled[remat]

    return call


def test_dit_initialized_is_zero_with_gradients_everywhere(new_params, loss_and_grads):
    params, moved = new_params, set()
    # Plain gradient steps reach every parameter: zero layers open one after the other.
    for i in range(5):
        value, grads = loss_and_grads('none')(params)
        assert value == 1 if i == 0 else value < 1  # the output is zero, then nearer to 1
        moved |= {path for path, leaf in nnx.to_flat_state(grads) if np.any(leaf[...] != 0)}
        params = jax.tree.map(lambda p, g: np.asarray(p) - 0.5 * np.asarray(g), params, grads)
    assert moved == {path for path, _ in nnx.to_flat_state(params)}


def test_dit_extra_embeddings_are_initialized_with_zero_output(new_params):
    for extra in (new_params.frames_embed, new_params.source_embed):
        assert np.all(extra.out.kernel[...] == 0)
        assert np.abs(extra.hidden.kernel[...]).max() > 0.1
    assert np.abs(new_params.time_embed.out.kernel[...]).max() > 0.1


def test_dit_gates_and_modulations_are_initialized_with_zeros(new_params):
    for layer in (new_params.blocks.modulation, new_params.output.modulation, new_params.output.out):
        assert not np.any(layer.kernel[...]) and not np.any(layer.bias[...])


def test_dit_blocks_are_initialized_differently(new_params):
    kernel = new_params.blocks.attention.qkv.kernel[...]
    assert kernel.shape == (2, 32, 3, 32)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    limit = np.sqrt(6 / 64)
    assert 0.9 * limit < np.abs(kernel).max() <= limit


def test_dit_scan_equals_the_unrolled_blocks(model, inputs, output):
    x, timestep, text, source = inputs
    layout = SequenceLayout.from_grid(text.shape[1], (3, 2, 3))

    @jax.jit
    def unrolled():
        emb = model.embed_cond(timestep, 3, source)
        hidden = model.embed_tokens(x, text, layout)
        for i in range(SMALL.num_layers):
            hidden = run_block(model, i, hidden, emb, layout)
        return model.head(hidden, emb, layout)

    np.testing.assert_allclose(unrolled(), output, atol=1e-5)


def test_dit_examples_are_independent(run, inputs, output):
    other = [x.at[0].add(1) for x in inputs]
    np.testing.assert_allclose(run(*other)[1:], output[1:], atol=1e-5)


@pytest.mark.parametrize('changed', range(4))
def test_dit_depends_on_every_input(run, inputs, output, changed):
    other = [x + 1 if i == changed else x for i, x in enumerate(inputs)]
    assert np.abs(run(*other) - output).max() > 1e-3


def test_dit_embeds_the_number_of_frames(model, inputs):
    _, timestep, _, source = inputs
    assert np.abs(model.embed_cond(timestep, 3, source) - model.embed_cond(timestep, 4, source)).max() > 1e-3


def test_dit_without_extra_embeddings():
    config = dataclasses.replace(SMALL, embed_num_frames=False, embed_noise_augmentation_timestep=False)
    model = make(config)
    x, timestep, text, source = make_inputs()
    assert jax.eval_shape(lambda: model(x, timestep, text)).shape == x.shape
    paths = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert not paths & {'frames_embed', 'source_embed'}
    with pytest.raises(ValueError, match='embed_noise_augmentation_timestep=False'):
        model(x, timestep, text, source)


def test_dit_with_the_embedding_of_intervals():
    config = dataclasses.replace(SMALL, embed_interval=True, param_dtype='bfloat16')
    model = nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model.interval_embed))} == {'float32'}
    with pytest.raises(ValueError, match='embeds interval: pass it'):
        model(*make_inputs())
    with pytest.raises(ValueError, match='embed_interval=False: remove it'):
        make(SMALL)(*make_inputs(), jnp.zeros(2))


def test_dit_requires_the_noise_augmentation_timestep(model, inputs):
    with pytest.raises(ValueError, match='embeds noise_augmentation_timestep: pass it'):
        model(*inputs[:3])


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'height': 5}, '5x6 do not divide'),
        ({'config': dataclasses.replace(SMALL, latent_channels=4)}, '4 channels.*latent_channels=3'),
        ({'config': dataclasses.replace(SMALL, text_dim=6)}, '6 wide.*text_dim=5'),
    ],
)
def test_dit_refuses_inputs_of_wrong_shape(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model(*make_inputs(**wrong))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'embed_dim': 33}, 'embed_dim=33: not a multiple of num_heads=2'),
        ({'num_heads': 4}, 'num_heads=4: a head of 8 channels'),
        ({'num_layers': 0}, 'num_layers=0: must be at least 1'),
        ({'dtype': 'float16'}, 'dtype=float16: must be one of float32, bfloat16'),
        ({'remat': 'some'}, 'remat=some: must be one of none, dots, full, offload'),
        ({'local_attention_init': -1.0}, 'local_attention_init=-1.0: must be at least 0'),
    ],
)
def test_dit_config_refuses_invalid_values(wrong, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **wrong)


def test_dit_local_attention_initialization():
    seen = []

    def attend(q, k, v, count):
        seen.append(jnp.einsum('bqnk,bmnk->bnqm', q, k)[0, 0] / np.sqrt(q.shape[-1]))
        return v

    config = dataclasses.replace(SMALL, embed_dim=128, local_attention_init=2.0)
    network, context = DiT(config, rngs=nnx.Rngs(0)), ParallelContext(attention=attend)
    layout, frames, height, width = SequenceLayout.from_grid(4, (2, 3, 5), context), 2, 3, 5
    # Tokens that are all alike: where they are is all that attention can go by.
    run_block(network, 0, jnp.zeros((1, 4 + frames * height * width, 128)), jnp.zeros((1, 8)), layout, context)
    logits = np.asarray(seen[0][4:, 4:])
    np.testing.assert_array_equal(logits.argmax(1), np.arange(frames * height * width))
    next_in_row = np.exp(logits[0, 1] - logits[0, 0])
    angles = 10000.0 ** (-np.arange(12) / 12)  # of a head's part for columns, 24 of 64 channels
    np.testing.assert_allclose(next_in_row, np.exp(-(2.0**2) / 8 * 2 * np.sum(1 - np.cos(angles))), rtol=1e-4)
    assert 0.54 < next_in_row < 0.56 and logits[0, 4] < logits[0, 2] < logits[0, 1]


def test_dit_config_round_trip_through_json():
    assert build(DiTConfig, to_dict(STAGE1)) == STAGE1


def test_remat_does_not_change_gradients(model, loss_and_grads):
    # 'dots', the default, is held to the official gradients in tests/parity.
    params = nnx.state(model)
    plain, *others = (jax.tree.leaves(loss_and_grads(remat)(params)[1]) for remat in ('none', 'full', 'offload'))
    for again in others:
        for actual, expected in zip(again, plain, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1e-3, np.abs(expected).max()))


def test_remat_offload_saves_block_inputs_in_host_memory(inputs):
    def moves(remat):
        model = nnx.eval_shape(lambda: DiT(dataclasses.replace(SMALL, remat=remat), rngs=nnx.Rngs(0)))
        graphdef, params = nnx.split(model)
        grad = jax.grad(lambda params: jnp.sum(nnx.merge(graphdef, params)(*inputs)))
        return str(jax.make_jaxpr(grad)(params)).count('MemorySpace.Host')

    assert moves('offload') and not moves('full')


def test_remat_recomputes(inputs):
    def count(remat, operation):
        model = nnx.eval_shape(lambda: DiT(dataclasses.replace(SMALL, remat=remat), rngs=nnx.Rngs(0)))
        graphdef, params = nnx.split(model)
        grad = jax.grad(lambda params: jnp.sum(nnx.merge(graphdef, params)(*inputs)))
        return str(jax.make_jaxpr(grad)(params)).count(f'= {operation}')

    # The linears' and attention's results are kept by `dots`; what lies between them (here GELU's tanh) is not, nor
    # are attention's logits.
    assert count('none', 'tanh') < count('dots', 'tanh')
    swaps = 2  # of rotary pairs, of queries and of keys: matrices for accelerators, quickly done again
    assert count('dots', 'dot_general') <= count('none', 'dot_general') + 1 + swaps
    assert count('dots', 'dot_general') + 5 <= count('full', 'dot_general')


def test_dit_in_bfloat16_is_close_to_float32(model, inputs, output):
    config = dataclasses.replace(SMALL, dtype='bfloat16')
    half = make(config)
    assert half.blocks.mlp.hidden.kernel.dtype == jnp.float32
    result = jax.jit(lambda *inputs: half(*inputs))(*inputs)
    assert result.dtype == jnp.bfloat16
    error = np.asarray(result, np.float32) - np.asarray(output)
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(np.asarray(output) ** 2))


def test_dit_with_bfloat16_parameters():
    config = dataclasses.replace(SMALL, param_dtype='bfloat16')
    params = nnx.state(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}


def test_dit_eps_of_the_final_norms(model):
    # The official fixtures hardly show the first (model guide 9). Inputs of variance 1e-6, far below 1e-5.
    dim = SMALL.embed_dim
    x = 1e-3 * np.random.default_rng(0).standard_normal((1, 4, dim))
    centred = x - x.mean(-1, keepdims=True)
    for norm, eps in ((model.final_norm, 1e-5), (model.output.norm, 1e-6)):
        expected = centred / np.sqrt(x.var(-1, keepdims=True) + eps)
        expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
        np.testing.assert_allclose(norm(jnp.float32(x)), expected, atol=1e-5)


def test_dit_eps_of_the_block_norms(model):
    assert (model.blocks.attention_norm.eps, model.blocks.mlp_norm.eps) == (1e-5, 1e-5)
    assert (model.blocks.attention.q_norm.eps, model.blocks.attention.k_norm.eps) == (1e-6, 1e-6)


def test_dit_uses_the_parallel_context(model, inputs, output):
    placed, attended = [], []

    def constrain(x, names):
        assert len(names) == x.ndim
        placed.append(names)
        return x

    def attention(q, k, v, num_tokens):
        attended.append((q.shape, num_tokens))
        return reference.attention(q, k, v)

    result = jax.jit(lambda *inputs: model(*inputs, context=ParallelContext(attention, constrain)))(*inputs)
    np.testing.assert_allclose(result, output, atol=1e-5)
    assert attended == [((2, 4 + 3 * 2 * 3, 2, 16), 4 + 3 * 2 * 3)]  # traced once, scanned over
    assert (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_EMBED) in placed
    assert placed.count((axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_HEADS, None)) == 3
    assert (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_MLP) in placed


def test_dit_padding_does_not_change_the_output(model, inputs, output):
    """Neither the output nor a gradient, whatever the padding's tokens come to."""

    def attention(q, k, v, num_tokens):
        spoilt = jnp.where((jnp.arange(k.shape[1]) < num_tokens)[None, :, None, None], 0, 1e3)
        o = reference.attention(q, k[:, :num_tokens], v[:, :num_tokens])
        return o + spoilt

    context = ParallelContext(attention, padded_length=lambda num_tokens: num_tokens + 7)
    graphdef, params = nnx.split(model)

    def loss_and_output(params, context):
        y = nnx.merge(graphdef, params)(*inputs, context=context)
        return jnp.mean(jnp.square(y - 1)), y

    run = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True), static_argnums=1)
    ((_, padded), grads), (_, plain) = run(params, context), run(params, SINGLE_DEVICE)
    np.testing.assert_allclose(padded, output, atol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_dit_inside_an_outer_scan_with_gradients(model, inputs):
    x, timestep, text, source = inputs
    graphdef, params = nnx.split(model)

    def loss(params):
        def step(x, _):
            return x - 0.5 * nnx.merge(graphdef, params)(x, timestep, text, source), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(step), x, length=2)[0])

    # nnx.scan would fail here while it is traced.
    grads = jax.eval_shape(jax.grad(loss), params)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def test_sinusoid_has_cosines_first():
    values = np.array([0.0, 1.0, 675.0])
    angles = values[:, None] * 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(sinusoid(jnp.float32(values), 8), expected, atol=5e-5)
