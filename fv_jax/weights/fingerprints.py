"""Fingerprints of networks: equal for equal parameters, whatever kind of file they came from.

Checkpoints identify the VAE and the text encoder of their latents and embeddings by them.
"""

from collections.abc import Iterator

import jax
import numpy as np

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
    samples = jax.device_get(_samples([leaf for _, leaf in leaves]))

    def parts() -> Iterator[str | bytes]:
        for (path, leaf), sample in zip(leaves, samples, strict=True):
            yield f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}'
            yield np.asarray(sample).tobytes()

    return fingerprint(parts())


@jax.jit
def _samples(leaves: list[jax.Array]) -> list[jax.Array]:
    return [x.reshape(-1)[np.linspace(0, x.size - 1, min(x.size, _SAMPLES)).astype(np.int64)] for x in leaves]
