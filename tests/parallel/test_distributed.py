"""The processes of a run, from flags or from the detected cluster."""

import re
import subprocess
import sys
import threading

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.parallel import distributed
from fv_jax.parallel.distributed import DistributedConfig, detect_cluster
from tests import runs

SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NUM_TASKS': '4'}
GKE = {'TPU_WORKER_HOSTNAMES': 'a-0.a,a-1.a', 'TPU_WORKER_ID': '1'}


@pytest.mark.parametrize(
    ('environment', 'tpu_host', 'found'),
    [
        ({}, False, None),
        (SLURM, False, 'slurm'),
        (SLURM | {'SLURM_STEP_NUM_TASKS': '1'}, False, None),
        (GKE, True, 'tpu'),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, True, None),
        ({'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': '2'}, True, 'tpu'),
        ({}, True, 'tpu'),  # a TPU VM, whose metadata server knows
        ({'TPU_SKIP_MDS_QUERY': '1'}, True, None),
        (GKE | {'JAX_PLATFORMS': 'cpu'}, True, None),
    ],
)
def test_detect_cluster(environment, tpu_host, found):
    assert detect_cluster(environment, tpu_host=tpu_host) == found


@pytest.mark.parametrize(
    ('nodes', 'tasks', 'gpus', 'devices', 'warned'),
    [
        ('4', '4', '8', [], ''),  # alone on its node: all GPUs
        ('1', '1', '8', [], ''),
        ('2', '16', '8', None, ''),
        (
            '2',
            '4',
            '8',
            None,
            r'6 of 8 GPUs of each node are not used: .*--ntasks-per-node=1\D.*--ntasks-per-node=8',
        ),
        ('2', '4', None, None, ''),
    ],
)
def test_slurm_devices(nodes, tasks, gpus, devices, warned, caplog):
    environment = {'SLURM_STEP_NUM_NODES': nodes, 'SLURM_STEP_NUM_TASKS': tasks}
    found = distributed.slurm_devices(environment | ({'SLURM_GPUS_ON_NODE': gpus} if gpus else {}))
    assert found == devices and bool(caplog.text) == bool(warned) and re.search(warned, caplog.text)


@pytest.mark.parametrize(('nodes', 'visible'), [(2, 'all'), (1, '0 1')])
def test_slurm_processes_see_all_gpus_of_their_own_node(nodes, visible):
    """Two processes as Slurm starts them, one on each node or both on one; JAX's own detection gives each one GPU."""
    program = """
import jax
from fv_jax.parallel import distributed
distributed.start(distributed.DistributedConfig())
print(jax.process_index(), jax.process_count(), jax.config.read('jax_cuda_visible_devices'))
"""
    port = str(runs.free_port())
    job = {
        'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_TASKS': '2',
        'SLURM_STEP_NUM_NODES': str(nodes), 'JAX_COORDINATOR_PORT': port,
        'JAX_COORDINATOR_BIND_ADDRESS': f'127.0.0.1:{port}',
    }  # fmt: skip
    started = []
    for i in range(2):
        process = {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(0 if nodes == 2 else i)}
        pipes = {'stdout': subprocess.PIPE, 'text': True, 'cwd': runs.ROOT}
        command = [sys.executable, '-c', program]
        started.append(subprocess.Popen(command, env=runs.environment() | job | process, **pipes))
    output = [process.communicate(timeout=120)[0].strip() for process in started]
    expected = visible.split() if nodes == 1 else [visible] * 2
    assert output == [f'{i} 2 {expected[i]}' for i in range(2)]


def test_distributed_config_from_flags():
    assert DistributedConfig() == DistributedConfig(None, None, None)
    DistributedConfig('host:1234', 2, 1)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('host:1', None, None), 'give all three, or none'),
        (('host', 2, 0), '--coordinator=host: must be HOST:PORT'),
        (('host:1', 2, 2), '--process-id=2: must be from 0 to 1'),
    ],
)
def test_distributed_config_refuses_invalid_flags(flags, message):
    with pytest.raises(ConfigError, match=message):
        DistributedConfig(*flags)


def test_force_exit_ends_a_failed_process_with_its_own_code():
    program = f"""
import time
from fv_jax.parallel import distributed
distributed.start(distributed.DistributedConfig('127.0.0.1:{runs.free_port()}', 1, 0))
distributed.GRACE = 0.1
distributed.force_exit_after_grace(7)
time.sleep(60)
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=runs.ROOT, env=runs.environment(), timeout=50)
    assert done.returncode == 7


def test_force_exit_does_nothing_for_a_single_process():
    before = threading.active_count()
    distributed.force_exit_after_grace(7)
    assert threading.active_count() == before
