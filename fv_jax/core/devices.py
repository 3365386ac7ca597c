"""The devices that JAX computes on, opened before a command begins its work."""

import re

import jax

from fv_jax.core.command_line import UsageError


def check_devices() -> None:
    """Opens JAX's backend, the one of JAX_PLATFORMS or what JAX finds. Raises UsageError if it cannot be opened."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS=cuda and there is no GPU
        chosen = f'JAX_PLATFORMS={jax.config.jax_platforms}: ' if jax.config.jax_platforms else ''
        # JAX's own advice is for people who did not choose a backend.
        reason = re.sub(r'\.? \((set|you may need) .*', '', ' '.join(str(error).split()))
        raise UsageError(
            f'{chosen}no device can be opened: {reason or "none is visible"}; install the backend '
            "(pip install 'fv_jax[tpu]' or 'fv_jax[cuda]'), or compute on the CPU with JAX_PLATFORMS=cpu"
        ) from None
