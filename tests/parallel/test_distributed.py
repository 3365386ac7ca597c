"""Who else takes part: said by flags or by the detect_cluster."""

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
