"""Which arrays a typed signature takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from fv_jax.core.array_typing import Array, Float, Int, typed


@typed
def outer(a_B: Float[Array, ' b'], b_C: Float[Array, ' c'] | Int[Array, ' c']) -> Float[Array, 'b c']:
    return a_B[:, None] * jnp.asarray(b_C, a_B.dtype)[None, :]


@pytest.mark.parametrize('of', [np.asarray, jnp.asarray])
@pytest.mark.parametrize('call', [outer, jax.jit(outer)])
def test_typed_accepts_jax_and_numpy_arrays(call, of):
    a, b = of(np.ones(2, np.float32)), of(np.arange(3, dtype=np.int32))
    np.testing.assert_array_equal(call(a, b), [[0, 1, 2]] * 2)


@pytest.mark.parametrize('of', [np.asarray, jnp.asarray])
def test_typed_refuses_wrong_ranks_and_dtypes(of):
    one, two = of(np.ones(2, np.float32)), of(np.ones((2, 2), np.float32))
    for a, b in ((two, one), (one, two), (of(np.ones(2, np.int32)), one), ([1.0, 2.0], one)):
        with pytest.raises(TypeCheckError):
            outer(a, b)
