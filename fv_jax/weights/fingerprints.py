"""Fingerprints of networks: equal for equal parameters, whatever kind of file they came from.

Checkpoints identify the VAE and the text encoder of their latents and embeddings by them.
"""

import functools
import math
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fv_jax.core.hashing import fingerprint
from fv_jax.weights.layouts.key_table import Parameters

_SAMPLES = 4096  # elements of a parameter that `sampled_fingerprint` reads


def params_fingerprint(values: Parameters) -> str:
    """Computes a fingerprint of every parameter's name, shape and values as float32, 16 hexadecimal digits.

    float16 and bfloat16 are exact in float32, so that a fingerprint does not depend on the dtype that a parameter is
    stored in. One parameter is in memory at a time.
    """

    def parts() -> Iterator[str | np.ndarray]:
        for name in sorted(values):
            array = np.ascontiguousarray(values[name].numpy(), '<f4')
            yield f'{name} {list(array.shape)}\n'
            yield array.reshape(-1).view(np.uint8)

    return fingerprint(parts())


def sampled_fingerprint(params: jax.typing.ArrayLike) -> str:
    """Computes a fingerprint of a tree of arrays from samples, 16 hexadecimal digits.

    It covers each array's path, shape and dtype and 4,096 evenly spaced elements: enough to tell networks apart, while
    a change of a few values may go unnoticed.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = [leaf for _, leaf in leaves]
    samples = jax.device_get(_samples(arrays, _replicated(arrays)))

    def parts() -> Iterator[str | bytes]:
        for (path, leaf), sample in zip(leaves, samples, strict=True):
            yield f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}'
            yield np.asarray(sample).tobytes()

    return fingerprint(parts())


@functools.partial(jax.jit, static_argnums=1)
def _samples(leaves: list[jax.Array], replicated: NamedSharding | None) -> list[jax.Array]:
    samples = [x[_sample_indices(x.shape)] for x in leaves]
    return samples if replicated is None else jax.lax.with_sharding_constraint(samples, replicated)


def _sample_indices(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    # By dimension: an array that is split over devices is not gathered, as it would be to flatten it.
    size = math.prod(shape)
    flat = np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64)
    return np.unravel_index(flat, shape) if shape else ()


def _replicated(leaves: list[jax.Array]) -> NamedSharding | None:
    """Returns the sharding with which every process has the samples; None for arrays of one device."""
    meshes = [x.sharding.mesh for x in leaves if isinstance(getattr(x, 'sharding', None), NamedSharding)]
    return NamedSharding(meshes[0], PartitionSpec()) if meshes else None
