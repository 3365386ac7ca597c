"""Diffusion times: timestep shift, sampling grid and the distribution of training times (model guide 5.3 and 7).

t = 1 at the source, 0 at the data. With w uniform in [0, 1] (1 at the source) and shift s,

    t = s w / (1 + (s - 1) w)         (1)   s > 1 pushes towards the source; the inverse is the same with 1/s; it is
                                            the time shift of arXiv:2403.03206
    grid: w_i = 1 - i/n, i = 0..n     (2)
    timestep = 1000 t                 (3)   what the network embeds

The official code counts 1 - t. In 'exact' numerics the grid is (1) in float64. In 'official' numerics it is what the
official code makes in bfloat16, rounded after every operation: with n = 5, s = 2.5 the timesteps are 1000, 904, 784,
624, 384 in place of 1000, 909.09, 789.47, 625, 384.62, and (3) holds only roughly.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from fv_jax.core.checks import require
from fv_jax.diffusion.noise_schedules import NUM_TIMESTEPS

Numerics = Literal['exact', 'official']

# The dtypes of a solver's state and of the network's timesteps.
STATE_DTYPES: dict[str, Any] = {'exact': jnp.float32, 'official': jnp.bfloat16}


class Times(NamedTuple):
    """Pairs (t, timestep): two float32 arrays (n + 1,) for a grid of n steps, two scalars for one of its times."""

    t: Any
    timestep: Any


def shift_times(w: Any, shift: float) -> Any:
    """Shifts times by (1) (arXiv:2403.03206, eq. 23).

    Args:
      w: times in [0, 1], a number or an array.
      shift: s; above 1 towards the source (t = 1), below 1 towards the data.
    """
    return shift * w / (1 + (shift - 1) * w)


def flow_time_grid(num_steps: int, shift: float = 1.0, numerics: Numerics = 'exact') -> Times:
    """Computes the time grid of a flow, from source (t = 1) to data (t = 0).

    Args:
      num_steps: n, the number of intervals.
      shift: s of (1).
      numerics: 'exact', or 'official' for the official bfloat16 grid.

    Returns:
      t and timestep, float32 (n + 1,) each.

    Raises:
      ValueError: no steps, or a shift that is not positive.
    """
    require(num_steps >= 1, f'num_steps={num_steps}: at least 1 step is needed')
    require(shift > 0, f'shift={shift}: must be positive (1 leaves the times evenly spaced)')
    t, timestep = _GRIDS[numerics](num_steps, shift)
    return Times(t.astype(np.float32), timestep.astype(np.float32))


def embedded_timestep(timestep: jax.Array, numerics: Numerics = 'exact') -> jax.Array:
    """Rounds timesteps as the input of the network.

    Args:
      timestep: of any shape.
      numerics: 'official' rounds to bfloat16 (675 to 676, 650 to 648); 'exact' does not round.

    Returns:
      float32 of the same shape.
    """
    kept = jnp.finfo(STATE_DTYPES[numerics])
    # Not a cast to bfloat16 and back, which a compiler that allows excess precision removes.
    return jax.lax.reduce_precision(jnp.asarray(timestep, jnp.float32), kept.nexp, kept.nmant)


def stratified_times(keys_B: jax.Array, shift: float = 1.0) -> jax.Array:
    """Draws a time t for each example of the global batch: w_b = 1 - (b + uniform) / B, shifted by (1).

    Each of B equal parts of [0, 1] contains exactly one w, which reduces the variance of the loss. The w of example b
    is always in part b, so the examples of a batch must not be sorted.

    Args:
      keys_B: one key for each example.
      shift: s of (1).

    Returns:
      (B,) float32.
    """
    batch = keys_B.shape[0]
    within_B = jax.vmap(jax.random.uniform)(keys_B)
    u_B = (jnp.arange(batch, dtype=jnp.float32) + within_B) / batch
    return shift_times(1 - u_B, shift)


def stratified_integers(keys_B: jax.Array, key: jax.Array, low: int, high: int) -> jax.Array:
    """Draws an integer from low to high, both included, for each example of the global batch.

    As in `stratified_times`, each of B equal parts of the range contains exactly one. A random permutation assigns the
    parts to the examples, so that the integers are independent of the examples' t.

    Args:
      keys_B: one key for each example.
      key: of the permutation, one for the batch.
      low, high: the range.

    Returns:
      (B,) int32.
    """
    batch = keys_B.shape[0]
    within_B = jax.vmap(jax.random.uniform)(keys_B)
    part_B = jax.random.permutation(key, batch)
    drawn_B = low + jnp.floor((part_B + within_B) / batch * (high + 1 - low)).astype(jnp.int32)
    return jnp.minimum(drawn_B, high)  # float32 may round the last part's end up


def discretize_times(t: jax.Array) -> jax.Array:
    """Discretizes times in [0, 1] to timesteps ceil(1000 t) - 1, int32 0 ... 999, uniform if the times are."""
    index = jnp.ceil(NUM_TIMESTEPS * t).astype(jnp.int32) - 1
    return jnp.clip(index, 0, NUM_TIMESTEPS - 1)


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounds float32 values to bfloat16 and returns them as float32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def _exact_grid(num_steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    t = shift_times(1 - np.arange(num_steps + 1, dtype=np.float64) / num_steps, shift)
    return t, 1000 * t


def _official_grid(num_steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    r = _to_bfloat16
    s, s_less_1 = np.float32(shift), np.float32(shift - 1)  # scalars stay in float32 while arrays are bfloat16
    index = np.arange(num_steps + 1, dtype=np.float32)
    step = r(np.float32(1) / np.float32(num_steps))
    # Evenly spaced from both ends to the middle, as torch's linspace does it.
    u = np.where(index < (num_steps + 1) // 2, r(step * index), r(1 - r(step * (num_steps - index))))
    w = r(1 - u)
    towards_data = r(1 - r(r(s * w) / r(1 + r(s_less_1 * w))))
    return 1 - towards_data, r(1000 - r(1000 * towards_data))


_GRIDS: dict[str, Callable[[int, float], tuple[np.ndarray, np.ndarray]]] = {
    'exact': _exact_grid,
    'official': _official_grid,
}
