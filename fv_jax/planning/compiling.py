"""Compiling for a slice that is not there, and what the compiler says of memory.

libtpu, an ordinary package, compiles for any TPU on any machine.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence

import jax
from jax.experimental import topologies

from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import GIB
from fv_jax.planning.collectives import Traffic, read_traffic
from fv_jax.planning.slices import Slice

# libtpu looks for the machine that it is on, and asks the cloud where it finds none.
_NOWHERE = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_STDERR_LOG_LEVEL': '3',
}
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# "... temporaries (20.16G) exceeds available HBM (15.75G)", "Used 20.16G of 15.75G hbm"
_TOO_LARGE = re.compile(r'\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm')


class MissingCompilerError(ConfigError):
    """libtpu is not installed."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of an executable; bytes a device. fresh: results that take no argument's memory.
    seconds: of compiling.
    """

    arguments: float
    temporaries: float
    fresh: float
    code: float
    seconds: float
    traffic: Traffic


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """It was refused. needed: bytes a device, of temporaries or in all, whichever the compiler gave up at."""

    needed: float
    seconds: float


def devices_of(where: Slice) -> Sequence[jax.Device]:
    """The devices of a slice that is not there. Call it before JAX is asked for any other device.

    Raises:
      MissingCompilerError: without libtpu.
      ConfigError: libtpu knows no such slice.
    """
    if where.topology is None:
        raise ConfigError(f'--topology={where}: nothing here compiles for a GPU that is not there')
    if importlib.util.find_spec('libtpu') is None:
        raise MissingCompilerError(
            f'--topology={where}: to compile for it libtpu has to be installed, which no TPU needs to be there for; '
            "run pip install 'fv_jax[plan]' (in a clone: pip install -e '.[plan]')"
        )
    for name, value in _NOWHERE.items():
        os.environ.setdefault(name, value)
    jax.config.update('jax_platforms', 'cpu')
    options = {} if where.chip_config is None else {'chip_config_name': where.chip_config}
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=where.topology, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f'--topology={where}: libtpu knows no such slice ({str(error).splitlines()[0]})') from None


def compile_ahead(lower: Callable[[], jax.stages.Lowered], num_devices: int) -> Compiled | TooLarge:
    """Compiles. What does not fit is a result; any other complaint of the compiler's is raised."""
    began = time.monotonic()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := _TOO_LARGE.search(str(error))) is None:
            raise
        size, unit = (group for group in found.groups() if group)
        return TooLarge(float(size) * _UNITS[unit], time.monotonic() - began)
    memory = compiled.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        fresh=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        seconds=time.monotonic() - began,
        traffic=read_traffic(compiled.as_text(), num_devices),
    )


def gib(size: float) -> str:
    """'3.24 GiB'."""
    return f'{size / GIB:.2f} GiB'
