"""FLOPs by formula, compared with the cost analysis of XLA of a small network whose layers are not scanned over."""

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
from fv_jax.planning.flops import SequenceLength
from tests.models.single_block import run_block

CONTEXT = ParallelContext(attention=lambda q, k, v, n: unblocked_attention(q, k, v, n))
# Wide and long enough that products of matrices outweigh norms and activations.
DIT = DiTConfig(embed_dim=256, num_layers=2, num_heads=2, mlp_dim=1024, cond_dim=32, text_dim=64, remat='none')
LORA = dataclasses.replace(DIT, lora=LoRAConfig(rank=32, targets=('qkv', 'attention_out', 'modulation', 'mlp')))
TOKENS = SequenceLength(text=16, video=2 * 16 * 16)
SIZE = (1, 2, 32, 32, 16)
VAE_CONFIG = VAEConfig(base_channels=32, multipliers=(1, 1, 2, 2), num_res_blocks=1, groups=2, latent_channels=4)
T5_CONFIG = T5Config(vocab_size=64, embed_dim=256, num_layers=1, num_heads=4, head_dim=64, mlp_dim=512)


def count_flops(function, *arguments) -> float:
    """Returns the FLOPs of a lowered function by XLA's cost analysis."""
    return jax.jit(function).lower(*arguments).cost_analysis()['flops']


def split(make, *filters):
    return nnx.split(nnx.eval_shape(make), *filters)


def apply_unscanned(model: DiT, x, text):
    """Applies the network layer by layer, without a scan."""
    layout = SequenceLayout.from_grid(text.shape[1], (x.shape[1], x.shape[2] // 2, x.shape[3] // 2), CONTEXT)
    emb = model.embed_cond(jnp.ones(1), layout.grid[0], jnp.ones(1))
    h = model.embed_tokens(x, text, layout, context=CONTEXT)
    for i in range(model.config.num_layers):
        h = run_block(model, i, h, emb, layout, CONTEXT)
    return model.head(h, emb, layout, context=CONTEXT)


@pytest.mark.parametrize('config', [DIT, LORA], ids=['full', 'lora'])
def test_dit_flops_match_xla(config):
    kind = nnx.Param if config.lora is None else LoRAParam
    graphdef, trained, rest = split(lambda: DiT(config, rngs=nnx.Rngs(0)), kind, ...)
    x, text = jax.ShapeDtypeStruct(SIZE, jnp.float32), jax.ShapeDtypeStruct((1, TOKENS.text, 64), jnp.float32)

    def forward(trained, rest, x, text):
        return apply_unscanned(nnx.merge(graphdef, trained, rest), x, text).sum()

    assert count_flops(forward, trained, rest, x, text) == pytest.approx(
        flops.dit_forward(config, TOKENS).total, rel=0.03
    )
    backward = count_flops(jax.grad(forward), trained, rest, x, text)
    assert backward == pytest.approx(flops.dit_training(config, TOKENS).total, rel=0.05)


def test_attention_flops_match_xla():
    q = jax.ShapeDtypeStruct((1, TOKENS.total, 2, 128), jnp.float32)
    attention = count_flops(functools.partial(unblocked_attention, num_keys=TOKENS.total), q, q, q)
    assert flops.dit_forward(DIT, TOKENS).attention == pytest.approx(2 * attention, rel=0.03)


@pytest.mark.parametrize('first', [True, False])
def test_vae_flops_match_xla(first):
    """Encoder and decoder, for the first chunk of a clip, which has no cached frames, and for later ones."""
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


def test_vae_flops_of_a_single_frame_count_one_tap_in_time():
    later, first = (flops.vae_encode(VAE_CONFIG, 1, 64, 64, first=first).vae for first in (False, True))
    assert 2.5 < later / first < 3


def test_t5_flops_match_xla():
    graphdef, state = split(lambda: T5(T5_CONFIG, rngs=nnx.Rngs(0)))
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    counted = count_flops(lambda state, ids: nnx.merge(graphdef, state)(ids, context=CONTEXT), state, ids)
    assert counted == pytest.approx(flops.t5_forward(T5_CONFIG, 128).total, rel=0.05)


def test_flops_of_the_official_stage_2():
    """A clip of 49x1072x1920: 0.28 PFLOP linear and 2.53 attention forward, three times that in training."""
    sequence = SequenceLength(text=226, video=13 * 67 * 120)
    forward, training = flops.dit_forward(DiTConfig(), sequence), flops.dit_training(DiTConfig(), sequence)
    assert forward.attention == pytest.approx(2.53e15, rel=0.01) and forward.linear == pytest.approx(0.28e15, rel=0.02)
    assert training.total == pytest.approx(3 * forward.total, rel=0.01)


def test_recompute_flops_by_remat_policy():
    """One of the five products of the backward kernel recomputes; full remat adds the linear layers of a pass."""
    blocks = flops.dit_blocks(DIT, TOKENS)
    none, dots, full = (
        flops.dit_recompute(dataclasses.replace(DIT, remat=remat), TOKENS) for remat in ('none', 'dots', 'full')
    )
    assert none == dots == flops.Flops(attention=blocks.attention / 2, exponentials=blocks.exponentials)
    assert full == none + flops.Flops(linear=blocks.linear)


def test_training_executes_seven_products_and_two_exponentials_per_logit():
    sequence = SequenceLength(text=226, video=13 * 67 * 120)
    executed = flops.dit_training(DiTConfig(), sequence) + flops.dit_recompute(DiTConfig(), sequence)
    logits = sequence.total**2 * DiTConfig().num_heads * DiTConfig().num_layers
    assert executed.attention == 7 * 2 * logits * DiTConfig().head_dim and executed.exponentials == 2 * logits
    assert executed.total == executed.attention + executed.linear
