"""Several processes as one run: `start`, once, before JAX initializes its devices.

The other processes are detected on TPU VMs, on TPUs of GKE and under Slurm. Anywhere else three flags name them.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hashing import fingerprint

log = logging.getLogger(__name__)

LOOPBACK = ('localhost', '127.0.0.1', '::1')
SLURM = 'slurm'
GRACE_S = 10.0  # time that a failed process waits for the others
TPU_DEVICES = ('/dev/accel0', '/dev/vfio/0')


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run, as the flags name them; all three or none must be given.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes of the run.
      process_id: index of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @classmethod
    def from_flags(cls, arguments: argparse.Namespace) -> 'DistributedConfig':
        """Reads the flags of `core.command_line.add_process_flags`."""
        return cls(arguments.coordinator, arguments.num_processes, arguments.process_id)

    def __post_init__(self):
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]
        flags = [f'--{field.name.replace("_", "-")}' for field in dataclasses.fields(self)]
        wrong = f'{", ".join(flags)}: give all three, or none to detect the other processes'
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


def detect_cluster(environment: Mapping[str, str], *, tpu_host: bool) -> str | None:
    """Returns 'slurm' or 'tpu' where JAX can find the other processes by itself; None where there are none."""
    if 'SLURM_JOB_ID' in environment and int(environment.get('SLURM_STEP_NUM_TASKS', '1')) > 1:
        return SLURM
    if environment.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu':
        return None
    hosts = [name for name in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if name]
    if len(hosts) > 1 or int(environment.get('MEGASCALE_NUM_SLICES', '1')) > 1:
        return 'tpu'  # GKE sets it in the environment
    # On a TPU VM JAX asks the metadata server. Not where the environment names a single host, or forbids it.
    return 'tpu' if tpu_host and not hosts and 'TPU_SKIP_MDS_QUERY' not in environment else None


def slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Returns the `local_device_ids` of `jax.distributed.initialize` under Slurm.

    Without them JAX gives each process the one GPU of its index on the node. A process that is alone on its node takes
    all GPUs of it: no restriction, which is []. None leaves it to JAX.
    """
    nodes, tasks = (int(environment.get(f'SLURM_STEP_NUM_{name}', '1')) for name in ('NODES', 'TASKS'))
    if nodes == tasks:
        return []
    gpus, per_node = int(environment.get('SLURM_GPUS_ON_NODE', '0')), -(-tasks // nodes)
    if gpus > per_node:
        log.warning(
            f'{gpus - per_node} of {gpus} GPUs of each node are not used: each of its {per_node} processes takes one. '
            f'Start one process a node (--ntasks-per-node=1) or one a GPU (--ntasks-per-node={gpus})'
        )
    return None


def start(processes: DistributedConfig) -> None:
    """Connects to the other processes, if there are any. Raises RuntimeError when they cannot be reached."""
    if jax.distributed.is_initialized():
        return
    cluster = detect_cluster(os.environ, tpu_host=_is_tpu_host())
    local_devices = slurm_devices(os.environ) if cluster == SLURM else None
    if processes.coordinator is None and cluster is None:
        return
    address = processes.coordinator
    with _keep_sigterm():
        jax.distributed.initialize(
            address,
            processes.num_processes,
            processes.process_id,
            local_devices,
            coordinator_bind_address=None if address is None else bind_address(address),
        )


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """A context that restores the handler of SIGTERM: JAX, as it connects, sets one that does not end the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def force_exit_after_grace(code: int) -> None:
    """Ends this failed process with its own exit code after GRACE_S, unless it has ended by then.

    Without it JAX would wait for minutes for processes that no longer exist, and abort.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(GRACE_S, _end, [code])
        timer.daemon = True
        timer.start()


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def bind_address(coordinator: str) -> str | None:
    """Returns where process 0 listens: the loopback address if the coordinator has it; None for JAX's default, all."""
    host = coordinator.rpartition(':')[0].strip('[]')
    return coordinator if host in LOOPBACK else None


def barrier(name: str) -> None:
    """Waits until every process has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_first_process() -> bool:
    """Returns whether this process writes what all of them have computed."""
    return jax.process_index() == 0


def check_same(text: str, message: str) -> None:
    """Raises ValueError if a process has another text. All processes call it, and wait for each other."""
    if jax.process_count() > 1:
        digest = np.frombuffer(fingerprint([text]).encode(), np.uint8)
        digests = multihost_utils.process_allgather(digest)
        require((digests == digests[0]).all(), message)


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process. All processes call it, and wait for each other."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def gather_texts(texts: Iterable[str]) -> list[str]:
    """Returns the lines of text that any process has, sorted. All processes call it, and wait for each other."""
    if jax.process_count() == 1:
        return sorted(texts)
    data = np.frombuffer('\n'.join(texts).encode(), np.uint8)
    size = int(np.max(multihost_utils.process_allgather(np.array(data.size))))
    padded = np.pad(data, (0, size - data.size), constant_values=ord('\n'))
    gathered = multihost_utils.process_allgather(padded) if size else ()
    return sorted({text for row in gathered for text in row.tobytes().decode().split('\n') if text})


def _is_tpu_host() -> bool:
    return importlib.util.find_spec('libtpu') is not None and any(Path(path).exists() for path in TPU_DEVICES)
