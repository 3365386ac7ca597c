"""The T5 v1.1 encoder (arXiv:1910.10683, 2002.05202): token ids to embeddings (model guide 6).

    h   = embedding[ids]                                                                  not scaled
    h   = h + W_o softmax(q k^T + bias) v,     q, k, v = W norm(h)                        no 1 / sqrt(K)
    h   = h + W_out (gelu(W_gate norm h) * (W_hidden norm h))                             GELU by tanh
    out = norm(h),     norm(x) = x / sqrt(mean x^2 + eps) * scale                         no mean, no bias

bias[n, i, j] = relative_bias[bucket(j - i), n] is one table for all blocks. No linear has a bias.

FlashVideo runs it without a mask: padding (id 0) is attended to like any other token, and its outputs are kept.
The residual stream, norms, logits and softmax are float32; linears multiply in `dtype`.

Dimensions: B batch, L text tokens (J as keys), D width, N heads, K head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool

from fv_jax.core import axes
from fv_jax.core.array_typing import Array, Float, Int, typed
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_choice, check_range
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.kernels.linear import project
from fv_jax.models.layers import Axes, DtypeName, Dtypes, gelu_tanh, stack_layers, xavier_uniform

RESIDUAL = (axes.ACT_BATCH, None, axes.ACT_EMBED)  # text is short: its tokens are never sharded
WIDE_HEADS = (axes.ACT_BATCH, None, axes.ACT_HEADS, None)
WIDE_MLP = (axes.ACT_BATCH, None, axes.ACT_MLP)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and numerics of a T5 v1.1 encoder. The defaults are XXL.

    Attributes:
      vocab_size: rows of the embedding.
      embed_dim: D, the width of a token.
      num_layers: number of blocks.
      num_heads: N.
      head_dim: K, set separately, since num_heads * head_dim differs from embed_dim in some sizes.
      mlp_dim: hidden width of the gated MLP.
      num_buckets: buckets of relative positions, half of them for keys after the query; a multiple of 4.
      max_distance: distance from which on all relative positions share one bucket.
      norm_eps: of every RMS norm.
      dtype: dtype that linears multiply in.
      param_dtype: dtype that parameters are stored in.
    """

    vocab_size: int = 32128
    embed_dim: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    mlp_dim: int = 10240
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    dtype: DtypeName = 'float32'
    param_dtype: DtypeName = 'float32'

    def __post_init__(self):
        check_range(self, 'vocab_size', 'embed_dim', 'num_layers', 'num_heads', 'head_dim', 'mlp_dim', low=1)
        buckets = self.num_buckets >= 4 and self.num_buckets % 4 == 0
        require(buckets, f'num_buckets={self.num_buckets}: must be a multiple of 4, at least 4', ConfigError)
        require(
            self.max_distance > self.num_buckets // 4,
            f'max_distance={self.max_distance}: must be above {self.num_buckets // 4}, a quarter of num_buckets, '
            'up to which every distance has a bucket of its own',
            ConfigError,
        )
        check_range(self, 'norm_eps', above=0)
        check_choice(self, 'dtype', 'param_dtype', choices=DtypeName.__args__)


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Computes the bucket of the relative position of key j to query i, (length, length) int32.

    Half of the buckets are for keys after the query. In each half, with n = |j - i|, the first half of the buckets hold
    one n each, and the others grow with log(n) up to `max_distance`, from where on all n share the last.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(relative)
    side = num_buckets // 2
    exact = side // 2
    # In float32, as in the official code: log(8) / log(16) is exactly 3/4 there and slightly less in float64, which
    # would change a bucket.
    ratio = np.log(np.maximum(distance, 1) / exact).astype(np.float32) / np.float32(np.log(max_distance / exact))
    far = exact + (ratio * np.float32(side - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(far, side - 1))
    return (bucket + side * (relative > 0)).astype(np.int32)


class Projection(nnx.Module):
    """A linear without bias: y = x W."""

    def __init__(self, in_features: int, out_features: int, kernel_axes: Axes, *, dtypes: Dtypes, rngs: nnx.Rngs):
        kernel = xavier_uniform(rngs.params(), (in_features, out_features), dtypes.param)
        self.kernel = axes.param(kernel, kernel_axes)
        self.dtype = dtypes.compute

    def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... o']:
        """Maps (..., in) to (..., out) in the computation dtype."""
        return project(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


class RMSNorm(nnx.Module):
    """Root-mean-square normalization over the last dimension, x / sqrt(mean x^2 + eps) * scale, in float32."""

    def __init__(self, features: int, *, eps: float, dtypes: Dtypes):
        self.scale = axes.param(jnp.ones((features,), dtypes.param), (axes.NORM,))
        self.eps = eps

    def __call__(self, x: Float[Array, '... d']) -> Float[Array, '... d']:
        """Normalizes (..., features) and returns float32."""
        x = x.astype(jnp.float32)
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps) * scale


class Block(nnx.Module):
    """A T5 block: self-attention with the relative-position bias that it is passed, and a gated MLP."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        dtypes = Dtypes(config.dtype, config.param_dtype)
        dim, inner, heads = config.embed_dim, config.mlp_dim, config.num_heads * config.head_dim

        def projection(sizes: tuple[int, int], kernel_axes: Axes) -> Projection:
            return Projection(*sizes, kernel_axes, dtypes=dtypes, rngs=rngs)

        self.attention_norm = RMSNorm(dim, eps=config.norm_eps, dtypes=dtypes)
        self.q = projection((dim, heads), (axes.EMBED, axes.HEADS))
        self.k = projection((dim, heads), (axes.EMBED, axes.HEADS))
        self.v = projection((dim, heads), (axes.EMBED, axes.HEADS))
        self.attention_out = projection((heads, dim), (axes.HEADS, axes.EMBED))
        self.mlp_norm = RMSNorm(dim, eps=config.norm_eps, dtypes=dtypes)
        self.gate = projection((dim, inner), (axes.EMBED, axes.MLP))
        self.hidden = projection((dim, inner), (axes.EMBED, axes.MLP))
        self.mlp_out = projection((inner, dim), (axes.MLP, axes.EMBED))
        self.heads = config.num_heads, config.head_dim

    def __call__(self, h_BLD: jax.Array, bias_BNLJ: jax.Array, context: ParallelContext) -> jax.Array:
        h_BLD = context.constrain(h_BLD + self._attend(self.attention_norm(h_BLD), bias_BNLJ, context), RESIDUAL)
        x = self.mlp_norm(h_BLD)
        inner = context.constrain(gelu_tanh(self.gate(x)) * self.hidden(x), WIDE_MLP)
        return context.constrain(h_BLD + self.mlp_out(inner).astype(h_BLD.dtype), RESIDUAL)

    def _attend(self, x_BLD: jax.Array, bias_BNLJ: jax.Array, context: ParallelContext) -> jax.Array:
        """Computes attention here and not by `context.attention`, which takes no bias and always scales the logits."""
        q, k, v = (
            context.constrain(linear(x_BLD).reshape(*x_BLD.shape[:2], *self.heads), WIDE_HEADS)
            for linear in (self.q, self.k, self.v)
        )
        logits_BNLJ = jnp.einsum('blnk,bjnk->bnlj', q, k, preferred_element_type=jnp.float32) + bias_BNLJ
        weights_BNLJ = jax.nn.softmax(logits_BNLJ, axis=-1).astype(v.dtype)
        o_BLNK = jnp.einsum('bnlj,bjnk->blnk', weights_BNLJ, v)
        return self.attention_out(o_BLNK.reshape(*x_BLD.shape[:2], -1)).astype(x_BLD.dtype)


class T5(nnx.Module):
    """The T5 v1.1 encoder of the sizes in `config`."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        dtypes = Dtypes(config.dtype, config.param_dtype)
        normal = jax.nn.initializers.normal(1.0, config.param_dtype)
        self.embedding = axes.param(normal(rngs.params(), (config.vocab_size, config.embed_dim)), (None, axes.EMBED))
        self.relative_bias = axes.param(normal(rngs.params(), (config.num_buckets, config.num_heads)), (None, None))
        self.blocks = stack_layers(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs=rngs)
        self.final_norm = RMSNorm(config.embed_dim, eps=config.norm_eps, dtypes=dtypes)

    @typed
    def __call__(
        self,
        ids_BL: Int[Array, 'b l'],
        mask_BL: Bool[Array, 'b l'] | Int[Array, 'b l'] | None = None,
        *,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> Float[Array, 'b l d']:
        """Encodes token ids as embeddings, float32.

        Args:
          ids_BL: token ids, from 0 to vocab_size - 1.
          mask_BL: tokens with a nonzero mask are attended to. None, as FlashVideo runs T5, attends to all tokens,
            padding included. Every token has an output either way.
          context: the parallel context: sharding constraints.
        """
        h_BLD = context.constrain(self.embedding[...][ids_BL].astype(jnp.float32), RESIDUAL)
        bias_BNLJ = self._bias(ids_BL.shape[1])
        if mask_BL is not None:
            bias_BNLJ = jnp.where(mask_BL[:, None, None, :] != 0, bias_BNLJ, jnp.finfo(jnp.float32).min)
        # Not nnx.scan, which cannot be nested in another loop.
        graphdef, stacked = nnx.split(self.blocks)

        def body(h_BLD: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, layer)(h_BLD, bias_BNLJ, context), None

        h_BLD, _ = jax.lax.scan(body, h_BLD, stacked)
        return self.final_norm(h_BLD)

    def _bias(self, length: int) -> Float[Array, '1 n l j']:
        """Computes the relative-position bias that every block adds to its logits."""
        buckets_LJ = relative_buckets(length, self.config.num_buckets, self.config.max_distance)
        return self.relative_bias[...].astype(jnp.float32)[buckets_LJ].transpose(2, 0, 1)[None]
