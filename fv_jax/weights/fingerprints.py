"""Short names for networks: equal for equal numbers, whatever kind of file they came from.

A checkpoint names by them the VAE and the text encoder that its latents and embeddings come from. They tell networks
apart; they do not guard against a forger.
"""

import hashlib

import numpy as np

from fv_jax.weights.layouts.key_table import Parameters


def parameters_digest(values: Parameters) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over every parameter's name, shape and values as float32.

    float16 and bfloat16 are exact in float32, so that a number's digest does not depend on the type it is kept in. One
    parameter is in memory at a time.
    """
    digest = hashlib.sha256()
    for name in sorted(values):
        array = np.ascontiguousarray(values[name].numpy(), '<f4')
        digest.update(f'{name} {list(array.shape)}\n'.encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()[:16]
