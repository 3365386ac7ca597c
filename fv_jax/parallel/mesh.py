"""The device mesh: the chips of a run along four axes.

data     splits the batch; the only axis between TPU slices, whose data-center network is slower
fsdp     splits the batch, and every large parameter
context  splits the tokens of a sequence, and every large parameter
tensor   splits attention heads and the inner width of MLPs
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
AUTO = -1  # takes the remaining chips


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """The number of chips along each axis of the mesh, and how attention uses the context axis.

    Attributes:
      data, fsdp, context, tensor: number of chips; at most one of them may be -1, which takes the remaining ones.
      ulysses_degree: chips that exchange tokens for heads (`kernels/context_cost.ContextParallelPlan`); None leaves it
        to the cost model there.
      ring_attention: whether keys and values go round in a ring instead of being gathered; None as above.
      strategy: name of the logical-axis rules (`rules.STRATEGIES`); None is the default of the stage.
    """

    data: int = AUTO
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    ulysses_degree: int | None = None
    ring_attention: bool | None = None
    strategy: str | None = None

    def __post_init__(self):
        for name in AXES:
            if getattr(self, name) < 1 and getattr(self, name) != AUTO:
                raise ConfigError(
                    f'{name}={getattr(self, name)}: must be at least 1, or {AUTO} for the remaining chips'
                )
        check_range(self, 'ulysses_degree', low=1)
        rest = [name for name in AXES if getattr(self, name) == AUTO]
        wrong = f'{" and ".join(rest)}: at most one axis may be {AUTO}'
        require(len(rest) <= 1, wrong, ConfigError)

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """Returns the chips along each of `AXES`. Raises ConfigError when their product is not `num_devices`."""
        sizes = {name: getattr(self, name) for name in AXES}
        fixed = math.prod(size for size in sizes.values() if size != AUTO)
        asked = ' x '.join(f'{name} {size}' for name, size in sizes.items() if size not in (1, AUTO)) or 'every axis 1'
        if AUTO in sizes.values() and num_devices % fixed:
            raise ConfigError(
                f'config.parallel: {asked} does not divide {num_devices} device(s); use sizes whose product does'
            )
        require(
            AUTO in sizes.values() or num_devices == fixed,
            f'config.parallel: {asked} needs {fixed} device(s) and there are {num_devices}; set one axis to {AUTO} '
            'for the remaining ones',
            ConfigError,
        )
        return tuple(num_devices // fixed if size == AUTO else size for size in sizes.values())


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of these devices, or of all devices of the run.

    Neighbours on the later axes are neighbours in the chips' interconnect; TPU slices differ in `data` only.

    Raises ConfigError when the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    slices = count_slices(devices)
    if shape[0] % slices:
        raise ConfigError(f'config.parallel.data={shape[0]}: must be a multiple of the {slices} slices')
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(array), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Counts the TPU slices of the devices; 1 for devices that are no TPUs."""
    return len({getattr(device, 'slice_index', 0) for device in devices}) if devices[0].platform == 'tpu' else 1


def describe(mesh: Mesh, kind: str | None = None) -> str:
    """Formats a mesh as '8 cpu device(s) (data 2, fsdp 4)'. kind: name of the devices; None is their platform."""
    count = f'{mesh.size} {kind or mesh.devices.flat[0].platform} device(s)'
    along = ', '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1)
    return f'{count} ({along})' if along else count
