"""Low-rank additions to linears (LoRA, arXiv:2106.09685), as the official stage 1 has them (model guide 2).

    y     = x W + b + s [x A_1 B_1 | ... | x A_p B_p],    s = alpha / rank                                 (1)
    W_eff = W + s [A_1 B_1 | ... | A_p B_p]                                                                (2)

A linear with packed outputs (q | k | v) has one pair of matrices for each part. A network computes (1), which never
forms the matrix of (2); `merge_lora` forms it once. A is initialized at random and B with zeros, so that a new addition
changes nothing. A linear whose A and B are both exactly zero has no LoRA in effect, and training keeps it so: neither
receives a gradient.

A and B are the only variables of type `LoRAParam`, which is thus a stage's filter for what it trains. They are
stored in float32 whatever the network's parameters are stored in.

Dimensions: I inputs, O outputs, P parts, R rank; `...` any leading dimensions.
"""

import dataclasses
import functools
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.array_typing import Array, Float
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.kernels.linear import project

Module = TypeVar('Module', bound=nnx.Module)
Target = Literal['qkv', 'attention_out', 'modulation', 'mlp']


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """The linears of every block that have LoRA, and its rank and scale. The defaults are the official stage 1's.

    Attributes:
      rank: R, of the matrices A (in, R) and B (R, out).
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
    """A parameter of a low-rank addition: the variable type by which a stage selects what it trains."""


class LoRA(nnx.Module):
    """The low-rank addition s x A B to a linear's output (1)."""

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
        """Initializes A at random and B with zeros.

        Args:
          config: rank and scale.
          in_features, out_features, kernel_axes: those of the linear.
          parts: 1, or the first of several output dimensions.
          dtype: the computation dtype.
          rngs: for A.
        """
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
        """Maps (..., I) to the addition (..., P, *O) in the computation dtype."""
        a_IPR, b_PRO = (p[...].astype(self.dtype) for p in (self.a, self.b))
        low = self.scale * project(x.astype(self.dtype), a_IPR)
        return jnp.stack([project(low[..., j, :], b_PRO[j]) for j in range(b_PRO.shape[0])], axis=x.ndim - 1)


@jax.jit
def merged_kernel(kernel: jax.Array, a_IPR: jax.Array, b_PRO: jax.Array, scale: float) -> jax.Array:
    """Computes the merged kernel (2) of one linear, with product and sum in float32.

    Args:
      kernel: (I, *O).
      a_IPR, b_PRO: the matrices, float32.
      scale: s.

    Returns:
      (I, *O) in the dtype of the kernel.
    """
    parts, rank = b_PRO.shape[:2]
    a_IPR, b_PRO = a_IPR.astype(jnp.float32), b_PRO.astype(jnp.float32).reshape(parts, rank, -1)
    product = jnp.einsum('ipr,pro->ipo', a_IPR, b_PRO, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * product.reshape(kernel.shape)).astype(kernel.dtype)


def merge_lora(dit: Module) -> Module:
    """Merges LoRA into the weights (arXiv:2106.09685, section 4.1).

    Layers are merged one at a time, so that the float32 product exists for one layer only. A network without LoRA is
    returned unchanged.

    Returns:
      A network that computes the same with kernels (2) and `config.lora` None.
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
    """Adds newly initialized LoRA to a network, which still computes the same (arXiv:2106.09685, section 4.1).

    Args:
      dit: a network without LoRA.
      config: linears, rank and scale.
      key: for the matrices A.

    Raises:
      ValueError: the network has LoRA.
    """
    require(
        dit.config.lora is None,
        f'this network already has LoRA ({dit.config.lora}); merge_lora(dit) merges it into the weights',
    )
    return extend_network(dit, dataclasses.replace(dit.config, lora=config), key)


def extend_network(dit: Module, config: Any, key: jax.Array) -> Module:
    """Returns the network of `config` with the parameters of `dit`; those that `dit` lacks are newly initialized."""
    values = dict(nnx.to_flat_state(nnx.state(dit)))

    # Compiled, so that XLA drops the initialization of the parameters that exist.
    @jax.jit
    def fresh(key: jax.Array) -> nnx.State:
        state = nnx.state(type(dit)(config, rngs=nnx.Rngs(key)))
        return nnx.from_flat_state([each for each in nnx.to_flat_state(state) if each[0] not in values])

    graphdef = nnx.graphdef(abstract_module(functools.partial(type(dit), config)))
    return nnx.merge(graphdef, nnx.from_flat_state([*values.items(), *nnx.to_flat_state(fresh(key))]))


def rescale_lora(dit: Module, alpha: float) -> Module:
    """Returns a network that computes the same with another `config.lora.alpha`: its matrices B are scaled."""
    config = dataclasses.replace(dit.config.lora, alpha=alpha)
    ratio = alpha / dit.config.lora.alpha

    def rescale(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(variable[...] / ratio) if path[-2:] == ('lora', 'b') else variable

    values = [(path, rescale(path, variable)) for path, variable in nnx.to_flat_state(nnx.state(dit))]
    return nnx.merge(nnx.graphdef(_abstract(dit, config)), nnx.from_flat_state(values))


def _abstract(dit: Module, lora: LoRAConfig | None) -> Module:
    config = dataclasses.replace(dit.config, lora=lora)
    return abstract_module(functools.partial(type(dit), config))
