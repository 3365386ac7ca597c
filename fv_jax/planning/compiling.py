"""Ahead-of-time compilation for a topology that need not be attached, and the compiler's memory analysis.

libtpu compiles for every TPU, on machines without one.
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
from fv_jax.planning.collectives import CollectiveTraffic, parse_collectives, sum_estimated_cycles
from fv_jax.planning.slices import Slice

# Without these, libtpu looks for the TPU of this machine, and queries the metadata server of the cloud.
_LIBTPU_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_STDERR_LOG_LEVEL': '3',
}
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# "... temporaries (20.16G) exceeds available HBM (15.75G)", "Used 20.16G of 15.75G hbm"
_OUT_OF_MEMORY = re.compile(r'\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm')


class MissingCompilerError(ConfigError):
    """Raised where libtpu is not installed."""


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """Memory and communication of a compiled program, in bytes per device.

    Attributes:
      argument_bytes, temp_bytes, code_bytes: of its arguments, temporaries and instructions.
      output_bytes: of the results that do not alias a donated argument.
      seconds: of compiling.
      traffic: of its collectives, in one run.
      cycles: of all but kernels of our own and collectives, in one run, by the compiler's estimate.
    """

    argument_bytes: float
    temp_bytes: float
    output_bytes: float
    code_bytes: float
    seconds: float
    traffic: CollectiveTraffic
    cycles: float = 0.0


@dataclasses.dataclass(frozen=True)
class CompileOutOfMemory:
    """The compiler found that a program exceeds the memory of a device.

    Attributes:
      required_bytes: per device, of the temporaries alone or in total, whichever the compiler reported.
      seconds: of compiling.
    """

    required_bytes: float
    seconds: float


def get_topology_devices(topology: Slice) -> Sequence[jax.Device]:
    """Returns the devices of a TPU topology that need not be attached. Call it before any other use of JAX devices.

    Raises:
      MissingCompilerError: libtpu is not installed.
      ConfigError: the slice is of GPUs, or libtpu does not have it.
    """
    if topology.libtpu_name is None:
        raise ConfigError(f'--topology={topology}: programs can be compiled ahead of time for TPUs only')
    if importlib.util.find_spec('libtpu') is None:
        raise MissingCompilerError(
            f'--topology={topology}: compiling for it requires libtpu (but no TPU); '
            "run pip install 'fv_jax[plan]' (in a clone: pip install -e '.[plan]')"
        )
    for name, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update('jax_platforms', 'cpu')
    options = {} if topology.chip_config is None else {'chip_config_name': topology.chip_config}
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=topology.libtpu_name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f'--topology={topology}: libtpu does not have it ({str(error).splitlines()[0]})') from None


def compile_ahead(
    lower: Callable[[], jax.stages.Lowered], num_devices: int, package_devices: int = 1
) -> CompiledProgram | CompileOutOfMemory:
    """Lowers and compiles a program, whose collectives are counted as by `parse_collectives`.

    Returns CompileOutOfMemory for one that does not fit. Raises any other error of the compiler.
    """
    start = time.monotonic()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (match := _OUT_OF_MEMORY.search(str(error))) is None:
            raise
        size, unit = (group for group in match.groups() if group)
        return CompileOutOfMemory(float(size) * _UNITS[unit], time.monotonic() - start)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return CompiledProgram(
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        seconds=time.monotonic() - start,
        traffic=parse_collectives(text, num_devices, package_devices),
        cycles=sum_estimated_cycles(text),
    )


def format_gib(size: float) -> str:
    """Formats a number of bytes as '3.24 GiB'."""
    return f'{size / GIB:.2f} GiB'
