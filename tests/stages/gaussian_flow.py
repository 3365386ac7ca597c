"""A flow between two Gaussians in the plane, whose guided sampler is affine: its flow map is known.

The source is N(0, I), the data N(mean, diag(sigma^2)), with a mean and a sigma for each of two conditions: zero text
and any other. Independent source and data have the velocity E[source - data | x_t], affine in x.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.models.dit import DiTConfig
from fv_jax.stages.flow_map import FlowMap
from fv_jax.stages.flow_map_targets import FlowMapConfig

CONTEXT = ParallelContext(attention=lambda q, k, v: v)  # no network here has attention
NETWORK = DiTConfig(latent_channels=2, text_dim=1, embed_interval=True)
MEANS = np.float32([[0.5, -1.0], [1.5, 0.5]])  # of zero text; of other text
SIGMAS = np.float32([[0.7, 0.3], [0.2, 0.5]])


def velocity(x, t, condition, xp=np):
    """E[source - data | x_t = x], x (..., 2). t: in [0, 1], broadcastable to x. condition: bool, broadcastable to x."""
    shape = (2, *(1,) * (x.ndim - 1), 2)
    mean, sigma = (xp.where(condition, other, zero) for zero, other in (MEANS.reshape(shape), SIGMAS.reshape(shape)))
    variance = t**2 + (1 - t) ** 2 * sigma**2
    return (t - (1 - t) * sigma**2) / variance * (x - (1 - t) * mean) - mean


class Teacher(nnx.Module):
    """The exact network, with the official sign."""

    def __call__(self, x, timestep_B, text_BLD, source_B, *, context):
        t, condition = (value.reshape(-1, 1, 1, 1, 1) for value in (timestep_B / 1000, text_BLD.sum((1, 2)) > 0))
        return -velocity(x, t, condition, jnp)


class Student(nnx.Module):
    """An affine map for each pair of knots."""

    def __init__(self, knots, weights=None):
        count = len(knots)
        self.knots = np.float32(knots)
        matrix, bias = weights or (np.zeros((count, count, 2, 2)), np.zeros((count, count, 2)))
        self.matrix, self.bias = (nnx.Param(jnp.asarray(value, jnp.float32)) for value in (matrix, bias))

    def __call__(self, x, timestep_B, text_BLD, source_B, interval_B, *, context):
        i, j = (self._index(timestep_B - length) for length in (0, interval_B))
        return -(jnp.einsum('bfhwc,bdc->bfhwd', x, self.matrix[...][i, j]) + self.bias[...][i, j][:, None, None, None])

    def _index(self, timestep_B):
        return jnp.argmin(jnp.abs(timestep_B[:, None] / 1000 - self.knots[None]), axis=1)


@dataclasses.dataclass(frozen=True)
class GaussianFlow(FlowMap):
    """A flow map between the Gaussians."""

    def init(self, rngs):
        return Student(self.knots.t)

    def trainable(self):
        return nnx.Param

    def teacher_of(self, model):
        return Teacher()


def make_stage(**fields):
    config = {'text_length': 1, 'scale_factor': 1.0, 'noise_augmentation_timestep': 999, 'num_steps': 1} | fields
    return GaussianFlow(FlowMapConfig(**config), NETWORK)


def batch(size, seed=0):
    """Clips of one latent each, all with text."""
    noise = np.random.default_rng(seed).standard_normal((size, 1, 1, 1, 2)).astype(np.float32)
    z_high = MEANS[1] + SIGMAS[1] * noise
    return {'z_high_BFHWC': z_high, 'z_low_BFHWC': np.zeros_like(z_high), 'text_BLD': np.ones((size, 1, 1), np.float32)}


def guided(stage, x, t):
    w = stage.config.teacher_guidance_scale
    return velocity(x, t, False) + w * (velocity(x, t, True) - velocity(x, t, False))


def solve(stage, x, first, last):
    """The state that the teacher's sampler, Euler's or Heun's, makes at knot `last` of x at knot `first`, in NumPy."""
    config, x = stage.config, np.asarray(x, np.float64)
    w = 1 - np.arange(config.num_knots * config.teacher_substeps + 1) / (config.num_knots * config.teacher_substeps)
    times = config.shift * w / (1 + (config.shift - 1) * w)
    for i in range(first * config.teacher_substeps, last * config.teacher_substeps):
        h, slope = times[i + 1] - times[i], guided(stage, x, times[i])
        if config.teacher_sampler == 'heun':
            slope = (slope + guided(stage, x + h * slope, times[i + 1])) / 2
        x = x + h * slope
    return x


def exact_student(stage):
    """The mean velocities of the teacher's sampler, and its velocities where r = t."""
    t, origin_and_axes = np.float64(stage.knots.t), np.float64([[0, 0], [1, 0], [0, 1]])
    matrix, bias = np.zeros((len(t), len(t), 2, 2)), np.zeros((len(t), len(t), 2))
    for i in range(len(t) - 1):
        for j in range(i, len(t)):
            if i == j:
                u = guided(stage, origin_and_axes, t[i])
            else:
                u = (origin_and_axes - solve(stage, origin_and_axes, i, j)) / (t[i] - t[j])
            bias[i, j], matrix[i, j] = u[0], (u[1:] - u[0]).T
    return Student(t, (matrix, bias))


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))
