"""AdamW (arXiv:1711.05101), Muon (arXiv:2502.16982), learning-rate schedules, exponential moving average (EMA)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from fv_jax.core.config import check_choice, check_range

MUON_MOMENTUM = 0.95
MUON_RMS = 0.2  # RMS of an update at a learning rate of 1: about that of AdamW (arXiv:2502.16982)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its learning-rate schedule, gradient clipping and the moving average.

    Attributes:
      algorithm: 'adamw', or 'muon' (momentum with orthogonalized updates, Jordan et al. 2024) for the kernels and AdamW
        with Nesterov momentum for everything else. Muon's updates are scaled to the RMS of AdamW's, so that one
        learning rate serves both.
      learning_rate: the peak.
      lr_schedule: 'constant' (the authors' choice) or 'cosine', which ends at `final_lr_ratio` of the peak; both rise
        linearly over `warmup_steps`.
      weight_decay: applied to kernels only.
      momentum_dtype: dtype of Adam's first moment and Muon's momentum; bfloat16 saves 2 bytes per parameter. Adam's
        second moment stays float32: at b2 = 0.999 its changes are smaller than the precision of bfloat16.
      clip_norm: the global norm that gradients are clipped to (official 0.1).
      ema_decay: of the moving average that sampling uses; 0 keeps none. The first steps use less:
        min(decay, (1 + step) / (10 + step)).
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
    """Returns the schedule, update (from 0) -> learning rate, of a run of `num_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.lr_schedule == 'constant':
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1), alpha=config.final_lr_ratio)
    if not warmup:
        return after
    # It starts at peak / warmup: a rate of zero would waste the first update.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup])


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], 'key', None) == 'kernel', params)


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns gradient clipping by the global norm, followed by AdamW or Muon."""
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
    """Returns for each kernel the dimensions that Muon takes as a matrix, and None for any other parameter.

    The input dimensions are all but the last of a convolution kernel (height, width, in, out), and the last but one of
    (..., in, out): each of a stack of layers is a matrix of its own.
    """

    def dimensions(path, leaf):
        if getattr(path[-1], 'key', None) != 'kernel' or leaf.ndim < 2:
            return None
        first = 0 if leaf.ndim >= 4 else leaf.ndim - 2
        return MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Returns ema + (1 - d) (params - ema) with d = min(decay, (1 + step) / (10 + step)), in float32."""
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p.astype(jnp.float32) - e), ema, params)
