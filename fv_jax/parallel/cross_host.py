"""Cross-host OR of control flags: what one process requests is known to all of them at the same step.

Each process puts its flags on its devices; a small program, dispatched beside the training step, combines them. Nothing
waits for it: the result is read with the step's metrics, while the next step runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class CrossHostFlags:
    """Combines boolean flags over all processes. All of them call it equally often, with equally many flags."""

    def __init__(self, mesh: Mesh):
        self._size = mesh.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda flags: jnp.any(flags, 0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, *flags: bool) -> jax.Array | np.ndarray:
        """Returns for each flag whether it is set in any process: booleans of shape (number of flags,)."""
        local = np.array([flags], bool)
        if jax.process_count() == 1:
            return local[0]
        # One row of flags on each device of this process.
        rows = jax.make_array_from_callback((self._size, len(flags)), self._split, lambda index: local)
        return self._any(rows)
