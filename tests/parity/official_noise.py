"""Which of the noises that the official stage-1 sampler draws it uses."""

import jax


def used_draws(draws: jax.Array, num_steps: int) -> jax.Array:
    """It draws one at the first step, two at every middle step, of which the first is not used, and none at the last.

    Args:
      draws: all of them in order, (2 num_steps - 3, ...).
      num_steps: n, 2 or more.

    Returns:
      (num_steps - 1, ...), for `fixed_noise`.
    """
    if draws.shape[0] != 2 * num_steps - 3:
        raise ValueError(
            f'{draws.shape[0]} draws: {num_steps} official steps draw {2 * num_steps - 3} times, 1 at the first, 2 at '
            f'each middle one, 0 at the last'
        )
    return draws[::2]
