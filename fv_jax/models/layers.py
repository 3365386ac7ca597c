"""Layers of the transformers: Linear, LayerNorm, MLP and the modulation of adaptive norms.

    Linear      y = x W + b, W stored (in, *out), and a low-rank addition where there is one (models/lora.py)
    LayerNorm   y = (x - mean x) / sqrt(var x + eps) * scale + bias, in float32
    modulate    y = x (1 + scale) + shift                                                 model guide 1.3

Parameters are stored in `Dtypes.param` and cast to `Dtypes.compute` where they are used. Every parameter names its
logical axes.

Dimensions: B batch, M tokens, D width; `...` any leading dimensions.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from fv_jax.core import axes
from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.kernels.linear import project
from fv_jax.models.lora import LoRA, LoRAConfig, Module

LINEAR_OUTPUT = 'linear_output'  # the name under which a remat policy can keep every linear's result

DtypeName = Literal['float32', 'bfloat16']
Initializer = Callable[..., jax.Array]
Axes = tuple[str | None, ...]


class Dtypes(NamedTuple):
    """The two dtypes of a layer.

    Attributes:
      compute: dtype that linears multiply in.
      param: dtype that parameters are stored in.
    """

    compute: DtypeName = 'float32'
    param: DtypeName = 'float32'


class Modulation(NamedTuple):
    """The modulation of one branch: x (1 + scale) + shift before it, gate times its output after it."""

    shift: jax.Array
    scale: jax.Array
    gate: jax.Array


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Computes x (1 + scale) + shift with broadcasting (adaptive norm, arXiv:2212.09748, section 3.2)."""
    return x * (1 + scale) + shift


def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype: DtypeName) -> jax.Array:
    """Draws a kernel with Xavier's variance for the matrix (in, out) of each group, as for q, k and v.

    Args:
      key: random key.
      shape: (in, *groups, out).
      dtype: of the kernel.
    """
    groups = tuple(range(1, len(shape) - 1))
    init = jax.nn.initializers.variance_scaling(
        1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=-1, batch_axis=groups, dtype=dtype
    )
    return init(key, shape)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: DtypeName) -> jax.Array:
    """Returns a kernel of zeros; `key` is ignored."""
    del key
    return jnp.zeros(shape, dtype)


def _at_rank(x: jax.Array, ndim: int) -> jax.Array:
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


class Linear(nnx.Module):
    """Computes y = x W + b over the last dimension.

    A tuple as `out_features` makes several output dimensions. `lora` adds s x A B; with `lora_parts` > 1, which must be
    the first output dimension, each part has its own A and B.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | tuple[int, ...],
        kernel_axes: Axes,
        *,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        kernel_init: Initializer = xavier_uniform,
        lora: LoRAConfig | None = None,
        lora_parts: int = 1,
    ):
        out = out_features if isinstance(out_features, tuple) else (out_features,)
        self.kernel = axes.param(kernel_init(rngs.params(), (in_features, *out), dtypes.param), kernel_axes)
        self.bias = axes.param(jnp.zeros(out, dtypes.param), (*(None,) * (len(out) - 1), axes.NORM))
        self.dtype = dtypes.compute
        if lora is None:
            self.lora = None
        else:
            self.lora = LoRA(lora, in_features, out, kernel_axes, parts=lora_parts, dtype=dtypes.compute, rngs=rngs)

    def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... o']:
        """Maps (..., in) to (..., *out) in the computation dtype."""
        kernel = self.kernel[...].astype(self.dtype)
        y = project(x.astype(self.dtype), kernel)
        if self.lora is not None:
            y = y + self.lora(x).reshape(y.shape)
        return checkpoint_name(y + _at_rank(self.bias[...].astype(self.dtype), y.ndim), LINEAR_OUTPUT)


class LayerNorm(nnx.Module):
    """Layer normalization over the last dimension, in float32."""

    def __init__(self, features: int, *, eps: float, dtypes: Dtypes, bias: float = 0.0):
        self.scale = axes.param(jnp.ones((features,), dtypes.param), (axes.NORM,))
        self.bias = axes.param(jnp.full((features,), bias, dtypes.param), (axes.NORM,))
        self.eps = eps

    def __call__(self, x: Float[Array, '... d']) -> Float[Array, '... d']:
        """Normalizes (..., features) and returns float32."""
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        scale, bias = (_at_rank(p[...].astype(jnp.float32), x.ndim) for p in (self.scale, self.bias))
        return normal * scale + bias


class MLP(nnx.Module):
    """Two linears with an activation between them: out(activation(hidden(x)))."""

    def __init__(
        self,
        features: tuple[int, int, int],
        kernel_axes: tuple[Axes, Axes],
        activation: Callable[[jax.Array], jax.Array],
        *,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        out_init: Initializer = xavier_uniform,
        lora: LoRAConfig | None = None,
    ):
        first, inner, last = features
        self.hidden = Linear(first, inner, kernel_axes[0], dtypes=dtypes, rngs=rngs, lora=lora)
        self.out = Linear(inner, last, kernel_axes[1], dtypes=dtypes, rngs=rngs, kernel_init=out_init, lora=lora)
        self.activation = activation

    def __call__(
        self, x: Float[Array, '... i'], constrain: Callable[[jax.Array], jax.Array] = lambda inner: inner
    ) -> Float[Array, '... o']:
        """Maps (..., in) to (..., out); `constrain` is a sharding constraint for the hidden activation."""
        return self.out(constrain(self.activation(self.hidden(x))))


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Applies GELU in its tanh approximation (arXiv:1606.08415; model guide 1.3), elementwise."""
    return jax.nn.gelu(x, approximate=True)


@typed
def sinusoid(values_B: Float[Array, ' b'], dim: int) -> Float[Array, 'b d']:
    """Embeds values as [cos | sin] of value * 10000^(-k / (dim/2)), k = 0 ... dim/2 - 1, float32 (model guide 1.1)."""
    half = dim // 2
    # The exponent is rounded to float32, as the official code does: at a timestep of 1000 the last bit of a frequency
    # is 6e-5 of a radian. The exponential itself is rounded once, from float64.
    exponents = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = values_B.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def stack_layers(create: Callable[[nnx.Rngs], Module], count: int, *, rngs: nnx.Rngs) -> Module:
    """Creates `count` layers as one module whose parameters have a leading axis `layers`, for `jax.lax.scan`.

    Each layer is initialized with random numbers of its own.
    """
    modules = nnx.split_rngs(splits=count)(nnx.vmap(create, axis_size=count))(rngs)
    for _, parameter in nnx.iter_graph(modules):
        if isinstance(parameter, nnx.Param):
            parameter.set_metadata('axes', (axes.LAYERS, *parameter.get_metadata('axes')))
    return modules
