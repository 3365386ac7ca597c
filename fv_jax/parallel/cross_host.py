"""What any one process wants, known to all of them at the same step.

Each process puts its wishes on its devices, and a small program of its own, dispatched beside the training step, tells
everybody whether anyone has one. Nobody waits: the answer is read with the step's metrics, while the next step runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Votes:
    """All processes call it the same number of times, with as many wishes."""

    def __init__(self, mesh: Mesh):
        self._size = mesh.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda votes: jnp.any(votes, 0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, *wishes: bool) -> jax.Array | np.ndarray:
        """Which of the wishes somebody has, one boolean each."""
        mine = np.array([wishes], bool)
        if jax.process_count() == 1:
            return mine[0]
        votes = jax.make_array_from_callback((self._size, len(wishes)), self._split, lambda index: mine)
        return self._any(votes)
