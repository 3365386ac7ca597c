"""Noise that is given, for samplers that add some."""

import jax
import jax.numpy as jnp

from fv_jax.diffusion.dpm_solver import NoiseFn


def fixed_noise(noises: jax.Array) -> NoiseFn:
    """The noise of an array (n - 1, ...): that of step i is its entry i."""
    return lambda step: jnp.asarray(noises)[step]
