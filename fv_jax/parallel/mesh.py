"""The mesh: a run's chips along four axes.

data     rows of a batch. Between slices, which are joined by a network of their own, there is only this axis.
fsdp     rows of a batch, and a share of every large weight
context  tokens of a sequence, and a share of every large weight
tensor   attention heads and the inner width of MLPs
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range

DATA, FSDP, CONTEXT, TENSOR = AXES = ('data', 'fsdp', 'context', 'tensor')
REST = -1


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How many chips there are along each axis; one of them may be -1, which takes all that are left.

    context_heads, context_ring: how attention goes over the context axis (`kernels/context_cost.Method`); None leaves
      it to what is cheapest by the formulas there.
    strategy: which logical axes are split over which of these, by name (`rules.STRATEGIES`); None for the stage's own.
    """

    data: int = REST
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    context_heads: int | None = None
    context_ring: bool | None = None
    strategy: str | None = None

    def __post_init__(self):
        for name in AXES:
            if getattr(self, name) < 1 and getattr(self, name) != REST:
                raise ConfigError(
                    f'{name}={getattr(self, name)}: must be at least 1, or {REST} for the chips left over'
                )
        check_range(self, 'context_heads', low=1)
        rest = [name for name in AXES if getattr(self, name) == REST]
        wrong = f'{" and ".join(rest)}: only one can take the chips that are left over ({REST})'
        require(len(rest) <= 1, wrong, ConfigError)

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """Chips along each of `AXES`. Raises ConfigError when they do not make up `num_devices`."""
        sizes = {name: getattr(self, name) for name in AXES}
        fixed = math.prod(size for size in sizes.values() if size != REST)
        asked = ' x '.join(f'{name} {size}' for name, size in sizes.items() if size not in (1, REST)) or 'every axis 1'
        if REST in sizes.values() and num_devices % fixed:
            raise ConfigError(f'config.parallel: {asked} does not divide {num_devices} device(s)')
        require(
            REST in sizes.values() or num_devices == fixed,
            f'config.parallel: {asked} makes {fixed}, there are {num_devices} device(s); set one axis to {REST} '
            'to take what is left',
            ConfigError,
        )
        return tuple(num_devices // fixed if size == REST else size for size in sizes.values())


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these devices, or of all there are.

    Neighbours on the later axes are neighbours on the chips' own network; slices of a TPU differ in `data` only.

    Raises ConfigError when the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    slices = len({getattr(device, 'slice_index', 0) for device in devices}) if devices[0].platform == 'tpu' else 1
    if shape[0] % slices:
        raise ConfigError(f'config.parallel.data={shape[0]}: must be a multiple of the {slices} slices')
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(array), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe(mesh: Mesh, kind: str | None = None) -> str:
    """'8 cpu device(s)', and along which axes where there are several. kind: of device; None for its platform."""
    count = f'{mesh.size} {kind or mesh.devices.flat[0].platform} device(s)'
    along = ', '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1)
    return f'{count} ({along})' if along else count
