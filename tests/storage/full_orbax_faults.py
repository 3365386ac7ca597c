"""Checkpoints of Orbax in a bucket: requests of a save and a restore, and the same parameters in spite of faults.

A part of launch/check_services.sh.
"""

import contextlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fv_jax.core.paths import as_path
from tests.storage.faults import Fault

FAULTS = {
    'none': None,
    '503 for every tenth request': Fault(status=503, every=10),
    'every twentieth response is dropped': Fault(drop_response=True, every=20),
}


@pytest.mark.parametrize('fault', FAULTS.values(), ids=FAULTS)
def test_asynchronous_save_and_restore(gs_bucket, fault):
    arrays = {f'layer{i}': np.random.default_rng(i).standard_normal((64, 64)).astype(np.float32) for i in range(8)}
    state = jax.tree.map(jax.numpy.asarray, arrays)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True)
    path, proxy = as_path(f'{gs_bucket.url}/run'), gs_bucket.proxy
    with contextlib.nullcontext() if fault is None else proxy.inject(fault):
        with ocp.CheckpointManager(path, options=options) as manager:
            for step in range(2):
                assert manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
        num_saving = proxy.count()
        with ocp.CheckpointManager(path, options=options) as manager:
            assert manager.all_steps() == [1]
            restored = manager.restore(1, args=ocp.args.StandardRestore(abstract))
    jax.tree.map(np.testing.assert_array_equal, restored, arrays)
    assert all(name.startswith('run/1/') for name in gs_bucket.sizes())
    if fault is None:  # 251 for opening and two saves, 74 for opening and restoring
        assert num_saving <= 350 and proxy.count() - num_saving <= 120
    else:
        assert fault.num_applied >= 10
