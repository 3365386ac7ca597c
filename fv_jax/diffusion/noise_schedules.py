"""The noise schedule with zero terminal SNR (arXiv:2305.08891; model guide 5.1).

Over N = 1000 timesteps k, in float64 on the host:

    beta_k  = (linspace(sqrt(0.00085), sqrt(0.012), N)_k)^2,   abar_k = prod_{j<=k} (1 - beta_j)       (1)
    abar_k <- abar_k / (s + (1 - s) abar_k)                                                            (2)   SNR shift s

and for any choice of timesteps, from here on in float32, with first and last taken *among the chosen ones*:

    a_k = sqrt(abar_k),   a_k <- (a_k - a_last) a_first / (a_first - a_last)                           (3)

so that a, the signal's share, is exactly 0 at timestep 999. The noise's share is sqrt(1 - a^2). Because of (3) the
table of 51 steps is not a subset of the table of 1000.

The official denoiser does not take the sampler's a but the table of 1000's entry nearest to it (model guide 5.2), which
may be that of the timestep before.
"""

from typing import NamedTuple

import numpy as np

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


class NoiseSchedule(NamedTuple):
    """A discrete noise schedule, from noise to data.

    Attributes:
      timesteps: int64 (n,), decreasing from 999.
      sqrt_alphas: the signal's share a, float32 (n,), increasing from exactly 0.
    """

    timesteps: np.ndarray
    sqrt_alphas: np.ndarray


def alphas_cumprod(shift: float = 1.0) -> np.ndarray:
    """Computes abar of (1) and (2) by timestep.

    Args:
      shift: s of (2); above 1 is more noise at every timestep.

    Returns:
      float64 (1000,), decreasing.
    """
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=np.float64) ** 2
    abar = np.cumprod(1.0 - betas)
    return abar / (shift + (1.0 - shift) * abar)


def trailing_timesteps(num_steps: int) -> np.ndarray:
    """Computes the timesteps of n steps with "trailing" spacing (arXiv:2305.08891, table 2).

    Returns:
      int64 (n,): evenly spaced from 999 down, truncated.

    Raises:
      ValueError: fewer than 2 or more than 1000 steps.
    """
    if not 2 <= num_steps <= NUM_TIMESTEPS:
        raise ValueError(f'num_steps={num_steps}: a noise schedule has between 2 and {NUM_TIMESTEPS} steps')
    if num_steps == NUM_TIMESTEPS:
        return np.arange(NUM_TIMESTEPS)[::-1].copy()
    return np.linspace(NUM_TIMESTEPS - 1, 0, num_steps, endpoint=False).astype(np.int64)


def zero_snr_schedule(num_steps: int = NUM_TIMESTEPS, shift: float = 1.0) -> NoiseSchedule:
    """Computes the schedule (3) of n steps, from noise to data (arXiv:2305.08891, algorithm 1).

    Args:
      num_steps: n, from 2 to 1000.
      shift: s of (2).

    Returns:
      Timesteps and signal shares (n,); a is exactly 0 at timestep 999.

    Raises:
      ValueError: fewer than 2 or more than 1000 steps.
    """
    timesteps = trailing_timesteps(num_steps)
    a = np.sqrt(alphas_cumprod(shift)[timesteps].astype(np.float32))
    first, last = a[-1], a[0]  # by timestep: the one with most signal is the schedule's first
    return NoiseSchedule(timesteps, (a - last) * (first / (first - last)))


def sqrt_alphas_by_timestep(shift: float = 1.0) -> np.ndarray:
    """Returns a of the full schedule by timestep, float32 (1000,), which `noise_augmentation_timestep` indexes."""
    return zero_snr_schedule(NUM_TIMESTEPS, shift).sqrt_alphas[::-1].copy()


def nearest_timesteps(sqrt_alphas: np.ndarray) -> np.ndarray:
    """Finds for each given a the timestep of the 1000-step schedule with the nearest a, int64, of the same shape."""
    distances = np.abs(sqrt_alphas_by_timestep() - np.asarray(sqrt_alphas, np.float32)[..., None])
    return np.argmin(distances, axis=-1)


def denoiser_sqrt_alphas(schedule: NoiseSchedule) -> np.ndarray:
    """Computes the a that a denoiser uses at each timestep while a sampler follows `schedule` (model guide 5.2).

    At the timesteps of the schedule it is the nearest entry of the 1000-step schedule; at all others, which the sampler
    does not visit, the timestep's own entry.

    Returns:
      float32 (1000,).
    """
    by_timestep = sqrt_alphas_by_timestep()
    out = by_timestep.copy()
    out[schedule.timesteps] = by_timestep[nearest_timesteps(schedule.sqrt_alphas)]
    return out
