"""Cases of the TPU's attention kernels, interpreted, against the float32 reference.

`python -m tests.kernels.fused_cases` runs the full cross of `FACTORS`, and prints the relative L2 errors of the output
and of the gradients of queries, keys and values. The check runs a pairwise part of it (`test_fused_tpu.py`).
"""

import functools
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.kernels import fused_tpu, reference

MIB = 2**20


class Case(NamedTuple):
    """A case: `lengths` of queries and keys, `padding` of the keys, the standard deviation of the `logits`.

    With `ring`, the output is merged of two parts of the keys, and the gradients are those of the ring's backward pass.
    """

    lengths: tuple[int, int]
    padding: float
    head_dim: int
    dtype: str
    logits: float
    vmem: int
    ring: bool


FACTORS = Case(
    lengths=((37, 100), (257, 1500), (700, 384)),
    padding=(0.0, 0.07, 0.6),
    head_dim=(64, 128),
    dtype=('float32', 'bfloat16'),
    logits=(0.1, 1.0, 5.0),
    vmem=(128 * MIB, MIB // 4),  # the second divides the queries
    ring=(False, True),
)


def full_cross() -> list[Case]:
    return [Case(*values) for values in itertools.product(*FACTORS)]


def pairs(case: Case) -> set:
    return set(itertools.combinations(enumerate(case), 2))


def pairwise() -> list[Case]:
    """Chooses cases of the full cross, each with the most pairs of values that none before it has."""
    of_case = {case: pairs(case) for case in full_cross()}
    cases, left = [], set().union(*of_case.values())
    while left:
        cases.append(max(of_case, key=lambda case: len(of_case[case] & left)))
        left -= of_case[cases[-1]]
    return cases


def errors(case: Case) -> list[float]:
    """Computes the relative L2 errors of the output, and of the gradients of queries, keys and values."""
    (queries, keys), num_keys = case.lengths, round((1 - case.padding) * case.lengths[1])
    rng = np.random.default_rng(0)
    shapes = [(2, tokens, 2, case.head_dim) for tokens in (queries, keys, keys, queries)]
    scales = case.logits, 1, 1, 1
    q, k, v, do = (
        (scale * rng.standard_normal(shape)).astype(jnp.dtype(case.dtype))
        for scale, shape in zip(scales, shapes, strict=True)
    )
    options = fused_tpu.Options(case.vmem, interpret=True)

    @jax.jit
    def whole(q, k, v, do):
        o, pull = jax.vjp(functools.partial(fused_tpu.attention, num_keys=num_keys, options=options), q, k, v)
        return o, *pull(do)

    @jax.jit
    def ring(q, k, v, do):
        half = keys // 2
        parts = [
            fused_tpu.attention_with_lse(q, k[:, at], v[:, at], jnp.clip(num_keys - at.start, 0, half), options=options)
            for at in (slice(0, half), slice(half, keys))
        ]
        lse = jnp.logaddexp(parts[0][1], parts[1][1])
        o = sum(jnp.exp(lse_i - lse)[..., None] * o_i for o_i, lse_i in parts).astype(v.dtype)
        return o, *fused_tpu.gradients(q, k, v, o, lse, do, num_keys, options=options)

    @jax.jit
    def expected(q, k, v, do):
        o, pull = jax.vjp(lambda q, k, v: reference.attention(q, k[:, :num_keys], v[:, :num_keys]), q, k, v)
        return o, *pull(do)

    actual = (ring if case.ring else whole)(q, k, v, do)
    right = expected(*(x.astype(np.float32) for x in (q, k, v, do)))
    for gradient in actual[2:]:
        assert not np.any(np.asarray(gradient)[:, num_keys:]), case
    return [_relative_error(a, b) for a, b in zip(actual, right, strict=True)]


def tolerances(case: Case) -> list[float]:
    """Returns the largest relative L2 errors allowed, of what `errors` returns.

    Splash's, interpreted, with logits of size 1: in bfloat16 1.7e-3 of the output, by rounding it, and 2.4e-3 of the
    gradients; with heads of 128, whose queries are not scaled exactly, 2.4e-3 and 3.4e-3. The error of a weight is that
    of its logit, which grows with the logit.
    """
    limits = {
        ('float32', 64): (1e-6, 1e-6),
        ('float32', 128): (1e-6, 1e-6),
        ('bfloat16', 64): (2e-3, 3e-3),
        ('bfloat16', 128): (2.6e-3, 4e-3),
    }
    output, gradient = limits[case.dtype, case.head_dim]
    return [max(1.0, case.logits) * limit for limit in (output, gradient, gradient, gradient)]


def within_tolerances(found: list[float], case: Case) -> bool:
    """Returns whether the errors of a case are within its tolerances."""
    return all(error <= limit for error, limit in zip(found, tolerances(case), strict=True))


def _relative_error(actual: jax.Array, expected: jax.Array) -> float:
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def main() -> int:
    failures = 0
    for case in full_cross():
        found = errors(case)
        failed = not within_tolerances(found, case)
        failures += failed
        print(*case, *(f'{error:.1e}' for error in found), 'FAILED' if failed else '', flush=True)
    print(f'{failures} of {len(full_cross())} cases failed')
    return int(failures > 0)


if __name__ == '__main__':
    sys.exit(main())
