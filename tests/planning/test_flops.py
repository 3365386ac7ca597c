"""The formulas, beside what XLA counts in a small network whose layers are not scanned over."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.blocked import unblocked_attention
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, LoRAParam
from fv_jax.models.sequence import SequenceLayout
from fv_jax.models.t5 import T5, T5Config
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.planning import flops
from fv_jax.planning.flops import Sequence
from tests.models.single_block import run_block

CONTEXT = ParallelContext(attention=lambda q, k, v, n: unblocked_attention(q, k, v, n))
# Wide and long enough that products of matrices outweigh norms and activations.
DIT = DiTConfig(embed_dim=256, num_layers=2, num_heads=2, mlp_dim=1024, cond_dim=32, text_dim=64, remat='none')
LORA = dataclasses.replace(DIT, lora=LoRAConfig(rank=32, targets=('qkv', 'attention_out', 'modulation', 'mlp')))
ROW = Sequence(text=16, video=2 * 16 * 16)
SIZE = (1, 2, 32, 32, 16)
VAE_CONFIG = VAEConfig(base_channels=32, multipliers=(1, 1, 2, 2), num_res_blocks=1, groups=2, latent_channels=4)
T5_CONFIG = T5Config(vocab_size=64, embed_dim=256, num_layers=1, num_heads=4, head_dim=64, mlp_dim=512)


def counted(function, *arguments) -> float:
    """XLA's count, of the program as it was written."""
    return jax.jit(function).lower(*arguments).cost_analysis()['flops']


def split(make, *filters):
    return nnx.split(nnx.eval_shape(make), *filters)


def unscanned(model: DiT, x, text):
    """The network, layer by layer."""
    layout = SequenceLayout.from_grid(text.shape[1], (x.shape[1], x.shape[2] // 2, x.shape[3] // 2), CONTEXT)
    emb = model.embed_cond(jnp.ones(1), layout.grid[0], jnp.ones(1))
    h = model.embed_tokens(x, text, layout, context=CONTEXT)
    for i in range(model.config.num_layers):
        h = run_block(model, i, h, emb, layout, CONTEXT)
    return model.head(h, emb, layout, context=CONTEXT)


@pytest.mark.parametrize('config', [DIT, LORA], ids=['full', 'lora'])
def test_the_dit(config):
    kind = nnx.Param if config.lora is None else LoRAParam
    graphdef, trained, rest = split(lambda: DiT(config, rngs=nnx.Rngs(0)), kind, ...)
    x, text = jax.ShapeDtypeStruct(SIZE, jnp.float32), jax.ShapeDtypeStruct((1, ROW.text, 64), jnp.float32)

    def forward(trained, rest, x, text):
        return unscanned(nnx.merge(graphdef, trained, rest), x, text).sum()

    assert counted(forward, trained, rest, x, text) == pytest.approx(flops.dit_forward(config, ROW).total, rel=0.03)
    backward = counted(jax.grad(forward), trained, rest, x, text)
    assert backward == pytest.approx(flops.dit_training(config, ROW).total, rel=0.05)


def test_attention_is_told_from_linears():
    q = jax.ShapeDtypeStruct((1, ROW.tokens, 2, 128), jnp.float32)
    attention = counted(functools.partial(unblocked_attention, num_keys=ROW.tokens), q, q, q)
    assert flops.dit_forward(DIT, ROW).attention == pytest.approx(2 * attention, rel=0.03)


@pytest.mark.parametrize('first', [True, False])
def test_the_vae(first):
    """Both halves of both kinds of chunk: a convolution over a clip's start has a past to make up, not to read."""
    halves = {'encoder': ((1, 8, 64, 64, 3), (8, 64, 64)), 'decoder': ((1, 2, 8, 8, 4), (2, 8, 8))}
    for name, (shape, size) in halves.items():
        graphdef, state = split(lambda name=name: getattr(VAE(VAE_CONFIG, rngs=nnx.Rngs(0)), name))
        x = jax.ShapeDtypeStruct(shape, jnp.float32)

        def run(state, x, cache, graphdef=graphdef):
            return nnx.merge(graphdef, state)(x, cache)

        cache = {} if first else jax.eval_shape(run, state, x, {})[1]
        formula = flops.vae_encode if name == 'encoder' else flops.vae_decode
        compiled = jax.jit(run).lower(state, x, cache).compile().cost_analysis()['flops']
        assert compiled == pytest.approx(formula(VAE_CONFIG, *size, first=first).vae, rel=0.06), name


def test_a_picture_needs_one_tap_in_time():
    clip, picture = (flops.vae_encode(VAE_CONFIG, 1, 64, 64, first=first).vae for first in (False, True))
    assert 2.5 < clip / picture < 3


def test_t5():
    graphdef, state = split(lambda: T5(T5_CONFIG, rngs=nnx.Rngs(0)))
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    found = counted(lambda state, ids: nnx.merge(graphdef, state)(ids, context=CONTEXT), state, ids)
    assert found == pytest.approx(flops.t5_forward(T5_CONFIG, 128).total, rel=0.05)


def test_the_second_stage_is_as_large_as_it_is_known_to_be():
    """PF of a clip of 49 x 1072 x 1920: 0.28 linear and 2.53 attention forwards, three times that in training."""
    row = Sequence(text=226, video=13 * 67 * 120)
    forward, training = flops.dit_forward(DiTConfig(), row), flops.dit_training(DiTConfig(), row)
    assert forward.attention == pytest.approx(2.53e15, rel=0.01) and forward.linear == pytest.approx(0.28e15, rel=0.02)
    assert training.total == pytest.approx(3 * forward.total, rel=0.01)


def test_what_is_computed_again():
    """Of the kernel's seven products backwards three are logits and weights again; full remat adds a forward pass."""
    blocks = flops.dit_blocks(DIT, ROW)
    none, dots, full = (
        flops.recomputed(dataclasses.replace(DIT, remat=remat), ROW) for remat in ('none', 'dots', 'full')
    )
    assert none.attention == 1.5 * blocks.attention and none.linear == 0
    assert dots.attention == none.attention + blocks.attention and dots.linear == 0
    assert full.attention == dots.attention and full.linear == blocks.linear
