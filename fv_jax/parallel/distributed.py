"""Several processes as one run: `start`, once, before JAX is asked for a device.

Who else takes part is known from the surroundings on TPU VMs, on GKE's TPUs and under Slurm. Anywhere else three flags
say it.
"""

import dataclasses
import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError

LOOPBACK = ('localhost', '127.0.0.1', '::1')
GRACE = 10.0  # seconds that a process which failed waits for the others
TPU_DEVICES = ('/dev/accel0', '/dev/vfio/0')


@dataclasses.dataclass(frozen=True)
class Processes:
    """What the flags say. coordinator: HOST:PORT of process 0. Either all three are given or none."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]
        flags = [f'--{field.name.replace("_", "-")}' for field in dataclasses.fields(self)]
        wrong = f'{", ".join(flags)}: give all three, or none to let the surroundings decide'
        require(len(given) in (0, len(flags)), wrong, ConfigError)
        if not given:
            return
        host, colon, port = self.coordinator.rpartition(':')
        is_address = host and colon and port.isdigit()
        require(is_address, f'--coordinator={self.coordinator}: must be HOST:PORT of process 0', ConfigError)
        require(
            0 <= self.process_id < self.num_processes,
            f'--process-id={self.process_id}: must be from 0 to {self.num_processes - 1}, one of --num-processes',
            ConfigError,
        )


def surroundings(environment: Mapping[str, str], *, tpu_host: bool) -> str | None:
    """'slurm' or 'tpu' where JAX can find the other processes by itself; None where this one is alone."""
    if 'SLURM_JOB_ID' in environment and int(environment.get('SLURM_STEP_NUM_TASKS', '1')) > 1:
        return 'slurm'
    if environment.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu':
        return None
    hosts = [name for name in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if name]
    if len(hosts) > 1 or int(environment.get('MEGASCALE_NUM_SLICES', '1')) > 1:
        return 'tpu'  # GKE says it in the environment
    # A TPU VM asks its metadata server; where a single host is named, or there is no such server, nobody is asked.
    return 'tpu' if tpu_host and not hosts and 'TPU_SKIP_MDS_QUERY' not in environment else None


def start(processes: Processes) -> None:
    """Joins the other processes, if there are any.

    Raises RuntimeError when they cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    if processes.coordinator is not None:
        jax.distributed.initialize(
            processes.coordinator,
            processes.num_processes,
            processes.process_id,
            coordinator_bind_address=bind_address(processes.coordinator),
        )
    elif surroundings(os.environ, tpu_host=_is_tpu_host()) is not None:
        jax.distributed.initialize()


def leave(code: int) -> None:
    """Makes sure that a process which failed ends, and with its own exit code, though others may be gone: JAX would
    wait for them for minutes, and abort.
    """
    if jax.distributed.is_initialized():
        late = threading.Timer(GRACE, _end, [code])
        late.daemon = True
        late.start()


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def bind_address(coordinator: str) -> str | None:
    """Where process 0 listens: this machine alone where the others are on it; None for JAX's choice, every network."""
    host = coordinator.rpartition(':')[0].strip('[]')
    return coordinator if host in LOOPBACK else None


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def any_process(here: bool) -> bool:
    """Whether it is so in any process. All must call it, and all wait."""
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.array(here))))


def _is_tpu_host() -> bool:
    return importlib.util.find_spec('libtpu') is not None and any(Path(path).exists() for path in TPU_DEVICES)
