"""Held-out batches: the same clips with the same weights, whatever the mesh."""

from typing import NamedTuple

import numpy as np

from fv_jax.stages.protocol import Batch


class HeldoutBatch(NamedTuple):
    """A batch of held-out clips.

    Attributes:
      arrays: the batch, B examples.
      clips: the index of each example's clip among the held-out clips, (B,). Where there are fewer clips than examples
        each clip is repeated equally often, so that a mean over the batch is the mean over its clips.
    """

    arrays: Batch
    clips: np.ndarray

    @property
    def num_clips(self) -> int:
        """The number of different clips, which come first in the batch: the batch's weight in a mean over clips."""
        return len(np.unique(self.clips))


def heldout_indices(num_clips: int, batch_size: int) -> list[np.ndarray]:
    """Returns the clips of each batch, (batch_size,): every clip in exactly one batch.

    The clips that are left over after whole batches are spread over further ones, in groups whose sizes divide
    `batch_size`, each repeated to fill its batch: for 7 clips and batches of 4, (0 1 2 3), (4 5 4 5), (6 6 6 6).
    """
    found, first = [], 0
    while first < num_clips:
        group = next(n for n in range(min(batch_size, num_clips - first), 0, -1) if batch_size % n == 0)
        found.append(np.resize(np.arange(first, first + group), batch_size))
        first += group
    return found
