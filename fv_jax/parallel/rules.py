"""Sharding strategies: named sets of rules from logical axes to mesh axes, each with its reason.

A dimension with two mesh axes is split over both, the first one first; without any it is replicated. A
run chooses a strategy by `config.parallel.strategy`; each stage names the one that it is trained with by default.

Not Flax's lists of logical-axis rules: they have no room for the reason of each rule, and a dimension that does not
divide is an error here that names the field to change.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fv_jax.core import axes
from fv_jax.core.config import ConfigError, did_you_mean
from fv_jax.parallel.mesh import AUTO, AXES, CONTEXT, DATA, FSDP, TENSOR, ParallelConfig, make_mesh

COPIES = 'copies'  # a mesh axis that no rule names: its chips compute the same

MeshAxes = tuple[str, ...]
Names = tuple[str | None, ...]


class AxisRule(NamedTuple):
    """The mesh axes that one logical axis is split over, and the reason."""

    mesh_axes: MeshAxes
    reason: str


RuleSet = dict[str, AxisRule]  # by logical axis

_UNSPLIT, _BATCH, _WEIGHTS, _TOKENS, _WIDE = (), (DATA, FSDP), (FSDP, CONTEXT), (CONTEXT,), (TENSOR,)

_FSDP: RuleSet = {
    axes.LAYERS: AxisRule(_UNSPLIT, 'is scanned over'),
    axes.EMBED: AxisRule(
        _WEIGHTS,
        'every large parameter has it: a chip keeps its part of the parameters, their moments and their average, and '
        'gathers a layer when it runs it',
    ),
    axes.MODULATION: AxisRule(
        _WEIGHTS, 'a fifth of all parameters for a few vectors per clip: the vectors are communicated instead'
    ),
    axes.MLP: AxisRule(_WIDE, 'the inner layer is computed in parts and summed'),
    axes.HEADS: AxisRule(
        _WIDE,
        'heads are independent; there are 48 in the official stage 1, but 30 in stage 2: 2, 3, 5 or 6 parts',
    ),
    axes.COND: AxisRule(_UNSPLIT, 'a few hundred values wide'),
    axes.TEXT: AxisRule(_UNSPLIT, 'the other dimension of its weight is split'),
    axes.PATCH: AxisRule(_UNSPLIT, 'as TEXT'),
    axes.CONV_IN: AxisRule(_UNSPLIT, 'a VAE has 0.2 billion parameters: every chip keeps them all'),
    axes.CONV_OUT: AxisRule(_UNSPLIT, 'as CONV_IN'),
    axes.NORM: AxisRule(_UNSPLIT, 'small vectors: cheaper to replicate than to gather'),
    axes.ACT_BATCH: AxisRule(_BATCH, 'examples are independent'),
    axes.ACT_TOKENS: AxisRule(
        _TOKENS,
        'text and video are one padded sequence, so that every chip has the same amount of work; never height: it is '
        '67 patches in the official stage 2, a prime',
    ),
    axes.ACT_EMBED: AxisRule(_UNSPLIT, 'a norm needs all of it'),
    axes.ACT_HEADS: AxisRule(_WIDE, 'as HEADS'),
    axes.ACT_MLP: AxisRule(_WIDE, 'as MLP'),
    axes.ACT_WIDTH: AxisRule(_UNSPLIT, 'for previews: their frames are small'),
}
_SPLIT_FRAMES = AxisRule(
    (CONTEXT, TENSOR), '1920 columns divide by 8 and 16 at every level of a VAE, 1072 lines do not'
)
_WHOLE = AxisRule(_UNSPLIT, 'a sampler gathers every weight at each of its evaluations: faster where they fit whole')
_REPLICATED: RuleSet = {name: AxisRule(_UNSPLIT, 'a VAE is small, so replicated') for name in _FSDP}

FRAMES = 'replicated_split_frames'  # of VAEs

STRATEGIES: dict[str, RuleSet] = {
    # Weights over fsdp and context, tokens over context, heads and MLPs over tensor.
    'fsdp': _FSDP,
    # The same, with the frozen VAE's frames split by their columns.
    'fsdp_split_frames': _FSDP | {axes.ACT_WIDTH: _SPLIT_FRAMES},
    # Sampling: weights whole on every chip, except for heads and MLPs over tensor.
    'replicated_weights': _FSDP | {axes.EMBED: _WHOLE, axes.MODULATION: _WHOLE},
    # Networks are replicated; examples and the columns of frames are split.
    FRAMES: _REPLICATED | {axes.ACT_BATCH: _FSDP[axes.ACT_BATCH], axes.ACT_WIDTH: _SPLIT_FRAMES},
}


def check_strategy(name: str) -> None:
    """Raises ConfigError for a strategy that does not exist."""
    if name not in STRATEGIES:
        raise ConfigError(f'parallel.strategy={name}: {did_you_mean(name, STRATEGIES)}')


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh, and the sharding strategy on it by its name in `STRATEGIES`."""

    mesh: Mesh
    strategy: str

    def num_shards(self, name: str) -> int:
        """Returns the number of parts that a dimension of this logical axis is split into."""
        return math.prod(self.mesh.shape[axis] for axis in self._mesh_axes(name))

    def sharding(self, names: Names, shape: tuple[int, ...], what: str) -> NamedSharding:
        """Returns the sharding of an array.

        Args:
          names: the logical axis of every dimension; None is not split.
          shape: of the array.
          what: name of the array in messages.

        Raises:
          ConfigError: a dimension does not divide by its mesh axes, or two dimensions are split over the same axis.
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
                    f'{over}); use {self._fitting_axes(each, size)}'
                )
        return NamedSharding(self.mesh, PartitionSpec(*(each or None for each in placed)))

    def fold_batch(self, examples: int) -> 'Partitioner':
        """Returns the partitioner in which the batch axes divide `examples`, with the same devices in the same order.

        The chips of `data` and `fsdp` among which the examples cannot be divided join the context axis.
        """
        data, fsdp, context, tensor = self.mesh.devices.shape
        parts = math.gcd(data * fsdp, examples)
        if parts == data * fsdp:
            return self
        return self._reshape(parts, 1, data * fsdp // parts * context, tensor)

    def fold_context(self, parts: int) -> 'Partitioner':
        """Returns the partitioner whose context axis has `parts` chips, of which the rest of them are copies."""
        data, fsdp, context, tensor = self.mesh.devices.shape
        if parts == context:
            return self
        devices = self.mesh.devices.reshape(data, fsdp, parts, context // parts, tensor)
        names, types = (*AXES[:-1], COPIES, TENSOR), (*self.mesh.axis_types, self.mesh.axis_types[0])
        return dataclasses.replace(self, mesh=Mesh(devices, names, axis_types=types))

    def frames_sharding(self, shape_BFHWC: tuple[int, ...], latent_columns: int, what: str) -> NamedSharding:
        """Returns the sharding of frames: examples over the batch axes, columns over as many chips as divide them.

        Args:
          shape_BFHWC: of a video, of latents, or of the cache of a VAE.
          latent_columns: that the columns belong to; one of them is not divided.
          what: name of the array in messages.

        Raises:
          ConfigError: the examples do not divide over the mesh.
        """
        names = axes.ACT_BATCH, None, None, axes.ACT_WIDTH, None
        shards = self.num_shards(axes.ACT_WIDTH)
        parts = math.gcd(latent_columns, shards)
        if parts == 1:
            return self.sharding((axes.ACT_BATCH, *(None,) * 4), shape_BFHWC, what)
        if parts == shards:
            return self.sharding(names, shape_BFHWC, what)
        data, fsdp, context, tensor = self.mesh.devices.shape
        merged = self._reshape(data, fsdp, context * tensor, 1)
        return merged.fold_context(parts).sharding(names, shape_BFHWC, what)

    def _reshape(self, *shape: int) -> 'Partitioner':
        """Returns the partitioner with other sizes of the axes, and the same devices in the same order."""
        mesh = Mesh(self.mesh.devices.reshape(shape), AXES, axis_types=self.mesh.axis_types)
        return dataclasses.replace(self, mesh=mesh)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every chip has in full."""
        return NamedSharding(self.mesh, PartitionSpec())

    def _fitting_axes(self, mesh_axes: MeshAxes, size: int) -> str:
        """Returns the flags of a mesh over which a size divides: of as many chips, the rest of them along `data`."""
        chips = {DATA: self.mesh.shape[DATA]}
        for axis in mesh_axes:
            chips[axis] = math.gcd(self.mesh.shape[axis], size)
            chips[DATA] *= self.mesh.shape[axis] // chips[axis]
            size //= chips[axis]
        return ' '.join(f'--config.parallel.{axis}={count}' for axis, count in chips.items())

    def _mesh_axes(self, name: str) -> MeshAxes:
        """Returns the mesh axes of a logical axis that have more than one chip."""
        return tuple(axis for axis in STRATEGIES[self.strategy][name].mesh_axes if self.mesh.shape[axis] > 1)


def make_frames_partitioner(devices: Sequence[jax.Device]) -> Partitioner:
    """Makes the partitioner of a VAE that encodes or decodes one clip at a time, by its columns, on these devices."""
    return Partitioner(make_mesh(ParallelConfig(data=1, context=AUTO), devices), FRAMES)
