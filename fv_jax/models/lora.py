"""Low-rank additions to linears (LoRA, arXiv:2106.09685), as the official stage 1 has them (model guide 2).

    y     = x W + b + s [x A_1 B_1 | ... | x A_p B_p],    s = alpha / rank                                 (1)
    W_eff = W + s [A_1 B_1 | ... | A_p B_p]                                                                (2)

A linear with packed outputs (q | k | v) has one pair of matrices a part. (1) is what a network computes, without ever
making the matrix of (2); `merge_lora` makes it once and for all. A starts at random, B at zero, so that a fresh
addition changes nothing. A linear whose A and B are both exactly zero has none, and training leaves it so: no
gradient reaches either.

A and B are the only variables of type `LoRAParam`, which is thus a stage's filter for what it trains. They are
stored in float32 whatever the network's parameters are stored in.

Dimensions: I inputs, O outputs, P parts, R rank; `...` any leading dimensions.
"""

import dataclasses
import functools
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.core.abstract_module import abstract
from fv_jax.core.array_typing import Array, Float
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.kernels.linear import project

Module = TypeVar('Module', bound=nnx.Module)
Target = Literal['qkv', 'attention_out', 'modulation', 'mlp']


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which linears of every block have an addition, and how large it is. The defaults are the official stage 1's.

    alpha: the addition is scaled by alpha / rank.
    targets: 'qkv' (one pair of matrices for each of q, k and v), 'attention_out', 'modulation' and 'mlp' (both
      linears).
    """

    rank: int = 128
    alpha: float = 1.0
    targets: tuple[Target, ...] = ('qkv', 'attention_out', 'modulation')

    def __post_init__(self):
        check_range(self, 'rank', low=1, hint='for a network without LoRA leave out `lora`')
        check_range(self, 'alpha', above=0)
        known, given = Target.__args__, set(self.targets)
        valid = self.targets and given <= set(known) and len(given) == len(self.targets)
        wrong = f'targets={self.targets}: must be one or more of {", ".join(known)}, each once'
        require(valid, wrong, ConfigError)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRAParam(nnx.Param):
    """A variable of a low-rank addition."""


class LoRA(nnx.Module):
    """s x A B, the addition to a linear's output (1)."""

    def __init__(
        self,
        config: LoRAConfig,
        in_features: int,
        out_features: tuple[int, ...],
        kernel_axes: tuple[str | None, ...],
        *,
        parts: int,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        """out_features, kernel_axes: the linear's. parts: 1, or the first of several output dimensions."""
        assert parts == 1 or (len(out_features) > 1 and parts == out_features[0]), (parts, out_features)
        # Uniform within 1 / sqrt(I); the rank and the parts are never sharded.
        init = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', in_axis=0, out_axis=2, batch_axis=1)
        rest = out_features if parts == 1 else out_features[1:]
        rest_axes = kernel_axes[len(kernel_axes) - len(rest) :]
        a_IPR = init(rngs.params(), (in_features, parts, config.rank), jnp.float32)
        b_PRO = jnp.zeros((parts, config.rank, *rest), jnp.float32)
        self.a = LoRAParam(a_IPR, axes=(kernel_axes[0], None, None))
        self.b = LoRAParam(b_PRO, axes=(None, None, *rest_axes))
        self.scale = config.scale
        self.dtype = dtype

    def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... p o']:
        """(..., I) -> (..., P, *O) in the compute dtype."""
        a_IPR, b_PRO = (p[...].astype(self.dtype) for p in (self.a, self.b))
        low = self.scale * project(x.astype(self.dtype), a_IPR)
        return jnp.stack([project(low[..., j, :], b_PRO[j]) for j in range(b_PRO.shape[0])], axis=x.ndim - 1)


@jax.jit
def merged_kernel(kernel: jax.Array, a_IPR: jax.Array, b_PRO: jax.Array, scale: float) -> jax.Array:
    """(2) for one linear: (I, *O) in the kernel's dtype; product and sum in float32."""
    parts, rank = b_PRO.shape[:2]
    a_IPR, b_PRO = a_IPR.astype(jnp.float32), b_PRO.astype(jnp.float32).reshape(parts, rank, -1)
    product = jnp.einsum('ipr,pro->ipo', a_IPR, b_PRO, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * product.reshape(kernel.shape)).astype(kernel.dtype)


def merge_lora(dit: Module) -> Module:
    """The same function as a network without LoRA: its config's `lora` is None, its kernels are those of (2).

    Layer by layer, so that the float32 product exists for one layer at a time. A network without LoRA comes back.
    """
    lora = dit.config.lora
    if lora is None:
        return dit
    values = dict(nnx.to_flat_state(nnx.state(dit)))
    graphdef, abstract = nnx.split(_abstract(dit, None))

    def merged(path: tuple) -> nnx.Variable:
        matrices = [values.get((*path[:-1], 'lora', name)) for name in ('a', 'b')]
        if path[-1] != 'kernel' or matrices[0] is None:
            return values[path]
        layers = values[path][...], *(x[...] for x in matrices)
        return values[path].replace(jax.lax.map(lambda layer: merged_kernel(*layer, lora.scale), layers))

    paths = [path for path, _ in nnx.to_flat_state(abstract)]
    return nnx.merge(graphdef, nnx.from_flat_state([(path, merged(path)) for path in paths]))


def add_lora(dit: Module, config: LoRAConfig, key: jax.Array) -> Module:
    """The same function with a fresh LoRA beside it, for training to begin with.

    Raises ValueError for a network that has one.
    """
    if dit.config.lora is not None:
        raise ValueError(f'this network has LoRA already ({dit.config.lora}); merge_lora(dit) makes it part of it')
    config = dataclasses.replace(dit.config, lora=config)

    # Compiled, so that of the new network nothing but its LoRA is ever made.
    @jax.jit
    def fresh(key: jax.Array) -> nnx.State:
        return nnx.state(type(dit)(config, rngs=nnx.Rngs(key)), LoRAParam)

    values = [*nnx.to_flat_state(nnx.state(dit)), *nnx.to_flat_state(fresh(key))]
    return nnx.merge(nnx.graphdef(_abstract(dit, config.lora)), nnx.from_flat_state(values))


def _abstract(dit: Module, lora: LoRAConfig | None) -> Module:
    config = dataclasses.replace(dit.config, lora=lora)
    return abstract(functools.partial(type(dit), config))
