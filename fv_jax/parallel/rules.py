"""THE TABLE: on which mesh axes each logical axis lives, for each stage, and why.

A dimension with two mesh axes is split over both, over the first one first; without any it is whole on every chip.

Not Flax's lists of logical-axis rules: they have no room for a layout per stage and for the reason of each row, and a
dimension that does not divide is an error here that names the field to change.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fv_jax.core import axes
from fv_jax.core.config import ConfigError
from fv_jax.parallel.mesh import CONTEXT, DATA, FSDP, TENSOR

Strategy = Literal['lowres', 'superres', 'autoencoder']
MeshAxes = tuple[str, ...]
Names = tuple[str | None, ...]


class Row(NamedTuple):
    """One logical axis: its mesh axes in each strategy."""

    lowres: MeshAxes
    superres: MeshAxes
    autoencoder: MeshAxes
    why: str


_NONE, _ROWS, _SHARES, _TOKENS, _WIDE = (), (DATA, FSDP), (FSDP, CONTEXT), (CONTEXT,), (TENSOR,)

# fmt: off
TABLE = {
    #                    lowres   superres           autoencoder
    axes.LAYERS:     Row(_NONE,   _NONE,             _NONE,
                         'is scanned over'),
    axes.EMBED:      Row(_SHARES, _SHARES,           _NONE,
                         'every large weight has it: a chip keeps its share of the weights, of their moments and of'
                         ' their average, and gathers a layer when it runs it'),
    axes.MODULATION: Row(_SHARES, _SHARES,           _NONE,
                         'a fifth of all weights for a few vectors a clip: it is the vectors that travel'),
    axes.MLP:        Row(_WIDE,   _WIDE,             _NONE,
                         'the inner layer is computed in parts and summed'),
    axes.HEADS:      Row(_WIDE,   _WIDE,             _NONE,
                         'heads are independent; there are 48 in stage 1, but 30 in stage 2: 2, 3, 5 or 6 parts'),
    axes.COND:       Row(_NONE,   _NONE,             _NONE,
                         'a few hundred numbers wide'),
    axes.TEXT:       Row(_NONE,   _NONE,             _NONE,
                         'the other dimension of its weight is split'),
    axes.PATCH:      Row(_NONE,   _NONE,             _NONE,
                         'as TEXT'),
    axes.CONV_IN:    Row(_NONE,   _NONE,             _NONE,
                         'a VAE has 0.2 billion numbers: every chip keeps them all'),
    axes.CONV_OUT:   Row(_NONE,   _NONE,             _NONE,
                         'as CONV_IN'),
    axes.NORM:       Row(_NONE,   _NONE,             _NONE,
                         'small vectors: to gather them costs more than to keep them'),
    axes.ACT_BATCH:  Row(_ROWS,   _ROWS,             _ROWS,
                         'rows are independent'),
    axes.ACT_TOKENS: Row(_TOKENS, _TOKENS,           _NONE,
                         'text and video are one padded sequence, so that every chip has as much to do; never height,'
                         ' which is 67 patches in stage 2, a prime'),
    axes.ACT_EMBED:  Row(_NONE,   _NONE,             _NONE,
                         'a norm needs all of it'),
    axes.ACT_HEADS:  Row(_WIDE,   _WIDE,             _NONE,
                         'as HEADS'),
    axes.ACT_MLP:    Row(_WIDE,   _WIDE,             _NONE,
                         'as MLP'),
    axes.ACT_WIDTH:  Row(_NONE,   (CONTEXT, TENSOR), (CONTEXT, TENSOR),
                         '1920 columns divide by 8 and 16 at every level of a VAE, 1072 rows do not; stage 1 is'
                         ' small'),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the table's column for a stage."""

    mesh: Mesh
    strategy: Strategy

    def shards(self, name: str) -> int:
        """Into how many parts a dimension of this logical axis is split."""
        return math.prod(self.mesh.shape[axis] for axis in self._mesh_axes(name))

    def sharding(self, names: Names, shape: tuple[int, ...], what: str) -> NamedSharding:
        """Where an array lives.

        Args:
          names: the logical axis of every dimension, or None.
          shape: of the array.
          what: it is, for messages.

        Raises:
          ConfigError: a dimension does not divide by its mesh axes, or two dimensions want the same.
        """
        assert len(names) == len(shape), (what, names, shape)
        placed = [() if name is None else self._mesh_axes(name) for name in names]
        wanted = [axis for each in placed for axis in each]
        if twice := sorted({axis for axis in wanted if wanted.count(axis) > 1}):
            split = ' and '.join(str(name) for name, each in zip(names, placed, strict=True) if twice[0] in each)
            raise ConfigError(f'{what}: {split} cannot both be split over the mesh axis {twice[0]}')
        for dim, (name, each, size) in enumerate(zip(names, placed, shape, strict=True)):
            if size % (parts := math.prod(self.mesh.shape[axis] for axis in each)):
                over = ' x '.join(f'{axis} {self.mesh.shape[axis]}' for axis in each)
                raise ConfigError(
                    f'{what}: dimension {dim} ({name}) is {size}, which does not divide by {parts} (config.parallel: '
                    f'{over}); choose divisors of {size} there'
                )
        return NamedSharding(self.mesh, PartitionSpec(*(each or None for each in placed)))

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every chip."""
        return NamedSharding(self.mesh, PartitionSpec())

    def _mesh_axes(self, name: str) -> MeshAxes:
        """Those of more than one chip."""
        return tuple(axis for axis in getattr(TABLE[name], self.strategy) if self.mesh.shape[axis] > 1)
