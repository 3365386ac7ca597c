"""AdamW and Muon, learning-rate schedules and the moving average of the weights."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from fv_jax.core.config import check_choice, check_range

MUON_MOMENTUM = 0.95
MUON_RMS = 0.2  # of an update at a rate of 1: about AdamW's (Liu et al. 2025)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and what surrounds it.

    algorithm: 'adamw', or 'muon' (momentum with orthogonalised updates, Jordan et al. 2024) for the kernels and AdamW
      with Nesterov momentum for everything else. Muon's updates are given the size that AdamW's have, so that one rate
      serves both.
    lr_schedule: 'constant' (the authors' choice) or 'cosine', which ends at `final_lr_ratio` of the peak;
      both rise linearly over `warmup_steps`.
    weight_decay: on kernels only.
    momentum_dtype: what the running mean of gradients is kept in, Adam's first moment and Muon's momentum; bfloat16
      saves 2 bytes a parameter. Adam's second moment stays float32: at b2 = 0.999 it moves by less than bfloat16 shows.
    clip_norm: the global norm that gradients are cut to (official 0.1).
    ema_decay: of the weights that sampling uses; 0 keeps none. It starts low: min(decay, (1 + step) / (10 + step)).
    """

    algorithm: Literal['adamw', 'muon'] = 'adamw'
    learning_rate: float = 1e-4
    lr_schedule: Literal['constant', 'cosine'] = 'constant'
    warmup_steps: int = 0
    final_lr_ratio: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum_dtype: Literal['float32', 'bfloat16'] = 'float32'
    clip_norm: float = 0.1
    ema_decay: float = 0.999

    def __post_init__(self):
        check_range(self, 'learning_rate', 'clip_norm', 'eps', above=0)
        check_range(self, 'b1', 'b2', 'ema_decay', low=0, below=1)
        check_range(self, 'warmup_steps', 'weight_decay', 'final_lr_ratio', low=0)
        check_choice(self, 'momentum_dtype', choices=('float32', 'bfloat16'))


def learning_rates(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Step (from 0) to learning rate, for a run of `num_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.lr_schedule == 'constant':
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1), alpha=config.final_lr_ratio)
    if not warmup:
        return after
    # The first update already moves: a rate of zero would waste it.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], 'key', None) == 'kernel', params)


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Clips by the global norm, then AdamW or Muon."""
    make = _ALGORITHMS[config.algorithm]
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), make(config, learning_rates(config, num_steps)))


def _adamw(config: OptimConfig, rates: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rates,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.momentum_dtype,
        weight_decay=config.weight_decay,
        mask=_is_kernel,
    )


def _muon(config: OptimConfig, rates: optax.Schedule) -> optax.GradientTransformation:
    return muon(
        rates,
        beta=MUON_MOMENTUM,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        mu_dtype=config.momentum_dtype,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=MUON_RMS,
    )


_ALGORITHMS = {'adamw': _adamw, 'muon': _muon}


def _matrices(params: Any) -> Any:
    """Which dimensions of each kernel make a matrix: all but the last of a convolution (height, width, in, out); the
    last two of (..., in, out), so that each of a stack of layers is a matrix of its own. None for what is no kernel.
    """

    def of(path, leaf):
        if getattr(path[-1], 'key', None) != 'kernel' or leaf.ndim < 2:
            return None
        first = 0 if leaf.ndim >= 4 else leaf.ndim - 2
        return MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(of, params)


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """ema + (1 - d) (params - ema), d = min(decay, (1 + step) / (10 + step)); float32."""
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p.astype(jnp.float32) - e), ema, params)
