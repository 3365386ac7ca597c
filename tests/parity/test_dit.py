"""The DiT against the official one: every intermediate, the one-frame case, and the gradients (model guide 1, 7, 8)."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.models.layers import sinusoid
from fv_jax.models.patch import patch_grid
from fv_jax.models.rope import rope_table
from fv_jax.models.sequence import SequenceLayout
from fv_jax.weights import load_official
from fv_jax.weights.layouts import official_dit as dit_weights
from tests.models.single_block import run_block

TOLERANCE = 1e-4  # maximum absolute; gradients: of each tensor's maximum
GRADIENT = 'grad__'


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=TOLERANCE)


def bfhwc(x_BFCHW):
    return jnp.asarray(x_BFCHW.transpose(0, 1, 3, 4, 2))


@pytest.fixture(scope='module')
def model(official):
    return load_official(official / 'stage2.pt')


@pytest.fixture(scope='module')
def forward(model):
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))
    return lambda *inputs: run(params, *inputs)


@pytest.fixture(scope='module')
def io(official):
    with np.load(official / 'stage2_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def inputs(io):
    timestep = jnp.asarray(io['timesteps'])
    source = jnp.full(timestep.shape, io['sample_ref_noise_step'])
    return bfhwc(io['x']), timestep, jnp.asarray(io['context']), source


@pytest.fixture(scope='module')
def layout(model, inputs):
    return SequenceLayout.from_grid(inputs[2].shape[1], patch_grid(inputs[0].shape, model.config.patch_size))


def test_dit_parity_of_inferred_sizes(official, model):
    expected = json.loads((official / 'stage2_config.json').read_text())
    config = model.config
    assert config.embed_dim == expected['hidden_size']
    assert (config.num_heads, config.head_dim) == (expected['num_attention_heads'], expected['head_dim'])
    assert config.num_layers == expected['num_layers']
    assert config.cond_dim == expected['time_embed_dim']
    assert config.text_dim == expected['text_hidden_size']
    assert (config.patch_size, config.latent_channels) == (expected['patch_size'], expected['in_channels'])
    assert config.embed_num_frames and config.embed_noise_augmentation_timestep


def test_dit_parity_of_embeddings(model, io, inputs, layout):
    x, timestep, text, source = inputs
    dim = model.config.embed_dim
    close(sinusoid(timestep, dim), io['timestep_embedding'])
    close(model.time_embed(sinusoid(timestep, dim)), io['time_embed'])
    close(model.frames_embed(sinusoid(jnp.full(timestep.shape, float(x.shape[1])), dim)), io['time_size_emb'])
    close(model.source_embed(sinusoid(source.astype(jnp.float32), dim)), io['ref_step_time_emb'])
    close(model.embed_cond(timestep, layout.grid[0], source), io['emb'])
    close(model.embed_tokens(x, text, layout), io['tokens'])


def test_dit_parity_of_rope(model, io, layout):
    rope = rope_table(*layout.grid, head_dim=model.config.head_dim)
    close(rope.cos, io['rope_cos'])
    close(rope.sin, io['rope_sin'])


def test_dit_parity_of_each_block(model, io, layout):
    block = jax.jit(functools.partial(run_block, model), static_argnums=3)
    hidden, emb = io['tokens'], jnp.asarray(io['emb'])
    for i in range(model.config.num_layers):
        # Each block starts from the official input: an error is found where it is made.
        close(block(i, jnp.asarray(hidden), emb, layout), io[f'block_{i}'])
        hidden = io[f'block_{i}']
    close(model.final_norm(jnp.asarray(hidden)), io['after_final_layernorm'])
    close(model.head(jnp.asarray(hidden), emb, layout), bfhwc(io['output']))


def test_dit_parity_of_the_output(forward, io, inputs):
    close(forward(*inputs), bfhwc(io['output']))


def test_dit_parity_with_one_frame(forward, io):
    timestep = jnp.asarray(io['img_timesteps'])
    source = jnp.full(timestep.shape, io['sample_ref_noise_step'])
    close(forward(bfhwc(io['img_x']), timestep, jnp.asarray(io['img_context']), source), bfhwc(io['img_output']))


@pytest.fixture(scope='module')
def training(official):
    with np.load(official / 'train_loss_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def loss_and_grads(model, training):
    graphdef, params = nnx.split(model)
    timestep = jnp.asarray(training['net_timesteps'])
    source = jnp.full(timestep.shape, training['ref_noise_step'])
    inputs = bfhwc(training['xt']), timestep, jnp.asarray(training['context']), source
    target = bfhwc(training['target'])

    @jax.jit
    @jax.value_and_grad
    def run(params):
        return jnp.mean(jnp.square(nnx.merge(graphdef, params)(*inputs) - target))

    return run(params)


def test_dit_parity_of_the_loss(training, loss_and_grads):
    close(loss_and_grads[0], training['loss'])


def test_dit_parity_of_gradients(model, training, loss_and_grads):
    grads = {'.'.join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(loss_and_grads[1])}
    rows = {row.official[0][0]: row for row in dit_weights.table(model.config)}
    names = [key.removeprefix(GRADIENT) for key in training if key.startswith(GRADIENT)]
    assert len(names) == 13
    for name in names:
        expected = training[GRADIENT + name]
        # The first number in a per-layer key is the layer.
        key = f'{dit_weights.PREFIX}{name}'
        stacked = re.sub(r'(layers|modulations|layernorm_list)\.\d+', r'\1.{i}', key)
        row = rows[stacked]
        actual = np.asarray(grads[row.path])
        if stacked != key:
            actual = actual[int(re.search(r'\d+', name)[0])]
        expected = row.to_ours(expected).reshape(actual.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


def test_dit_parity_of_the_gradient_norm(training, loss_and_grads):
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(loss_and_grads[1])]
    norm = np.sqrt(sum(squares))
    np.testing.assert_allclose(norm, training['grad_global_norm'], rtol=TOLERANCE)
