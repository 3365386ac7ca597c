"""x W over the last dimension, with a weight gradient that a CPU computes at full speed.

    y = x W,    dx = dy W^T,    dW = x^T dy  (summed over all leading dimensions of x)

XLA for CPU multiplies by a transposed view of x at about half speed (512 x 1500 by 1500 x 2048: 64 ms on one core
against 33), and slower still when it sums over two dimensions. A copy of x^T that it may not look through avoids both.
Elsewhere the plain contraction stays, which the compiler lays out as it likes.

Dimensions: I inputs, O outputs (one or more dimensions), `...` any leading dimensions.
"""

import jax


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., I), (I, *O) -> (..., *O)."""
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    outputs = tuple(range(x.ndim - 1, dy.ndim))
    dx = jax.lax.dot_general(dy, kernel, ((outputs, tuple(range(1, kernel.ndim))), ((), ())))
    return dx, jax.lax.platform_dependent(x, dy, cpu=_kernel_gradient_copied, default=_kernel_gradient)


def _kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    leading = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, dy, ((leading, leading), ((), ())))


def _kernel_gradient_copied(x: jax.Array, dy: jax.Array) -> jax.Array:
    x_IM = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    return (x_IM @ dy.reshape(x_IM.shape[1], -1)).reshape(x.shape[-1], *dy.shape[x.ndim - 1 :])


project.defvjp(_forward, _backward)
