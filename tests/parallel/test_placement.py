"""Networks whose parameters are placed over eight devices as they are read: the values and shardings of each."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from fv_jax.core.config import ConfigError
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.parallel.sharding import parameter_shardings
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import embedded, official_release, placement, reader, trained_runs
from fv_jax.weights.layouts import key_table
from fv_jax.weights.parameters import Parameter
from tests import runs
from tests.sampling import tiny

OFFICIAL = Path(__file__).parents[1] / 'parity' / 'official_dev'
MESHES = [{'fsdp': 8}, {'data': 8}, {'fsdp': 2, 'context': 2, 'tensor': 2}]
TWO_PROCESSES = """\
import sys
import jax
import numpy as np
from flax import nnx
from fv_jax.parallel import distributed
from fv_jax.weights import placement
from tests.parallel import test_placement
distributed.start(distributed.DistributedConfig(sys.argv[1], 2, int(sys.argv[2])))
assert jax.process_count() == 2 and jax.device_count() == 8
placement.SMALL_BYTES = 0
read = test_placement.open_official().read['stage1.pt']
alone, placed = (jax.tree.leaves(nnx.state(read(where))) for where in (None, test_placement.partitioner(fsdp=8)))
for x, y in zip(alone, placed, strict=True):
    assert len(y.sharding.device_set) == 8 and len(y.addressable_shards) == 4
    for shard in y.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(x)[shard.index])
assert not all(y.is_fully_replicated for y in placed)
"""


def partitioner(**parallel):
    return Partitioner(make_mesh(ParallelConfig(**({'data': 1} | parallel))), 'fsdp')


def open_official():
    return official_release.open_release(OFFICIAL, 'bfloat16', TextConfig('hash'))


def assert_placed(placed, alone, where, variables):
    """Asserts that every parameter has the values of one device's, and the sharding of the partitioner."""
    placed, alone, shardings = (flatten_dict(x) for x in (placed, alone, parameter_shardings(where, variables)))
    assert placed.keys() == alone.keys() == shardings.keys()
    for path, array in placed.items():
        assert array.sharding == shardings[path] and array.dtype == alone[path].dtype, path
        np.testing.assert_array_equal(array, alone[path], err_msg=str(path))
    held = sum(array.addressable_shards[0].data.size for array in placed.values())
    split = any(not sharding.is_fully_replicated for sharding in shardings.values())
    assert (held < 0.6 * sum(array.size for array in alone.values())) == split == (where.mesh.shape['data'] == 1)


@pytest.mark.parametrize('small', [0, placement.SMALL_BYTES], ids=['by_layers', 'whole'])
@pytest.mark.parametrize('parallel', MESHES, ids=str)
@pytest.mark.parametrize('file', ['stage1.pt', 'stage2.pt'])
def test_official_file(file, parallel, small, monkeypatch):
    """Stage 1 with its LoRA merged."""
    release, where = open_official(), partitioner(**parallel)
    alone = nnx.to_pure_dict(nnx.state(release.read[file]()))
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(alone))
    monkeypatch.setattr(placement, 'SMALL_BYTES', small)
    placed = nnx.state(release.read[file](where))
    variables = nnx.state(reader.abstract_network(release.configs[file]))
    assert_placed(nnx.to_pure_dict(placed), alone, where, variables)


def assert_run_placed(run, where):
    alone = trained_runs.open_run(run)
    placed = trained_runs.open_run(run, partitioner_of=lambda stage: where)
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(alone.params))
    for part in ('trainable', 'frozen'):
        if alone.params[part]:
            assert_placed(placed.params[part], alone.params[part], where, getattr(alone.network, part))


@pytest.mark.parametrize('parallel', MESHES[:2], ids=str)
def test_single_file(parallel):
    for run in embedded.stages():
        assert_run_placed(run, partitioner(**parallel))


@pytest.mark.parametrize('parallel', MESHES[:2], ids=str)
def test_run(parallel, tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_run(tmp_path / 'run', tiny.stage_config(tmp_path / 'vae.safetensors'))
    assert_run_placed(tmp_path / 'run', partitioner(**parallel))


def test_the_vae_of_a_run_has_a_partitioner_of_its_own(tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_run(tmp_path / 'run', tiny.stage_config(tmp_path / 'vae.safetensors'))
    where = Partitioner(make_mesh(ParallelConfig(data=1, context=8)), 'fsdp_split_frames')
    run = trained_runs.open_run(tmp_path / 'run', vae_partitioner=where)
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(run.params))
    z = np.zeros((1, 3, 2, 8, 4), np.float32)
    assert len(run.vae.decode(z).devices()) == 8


def test_a_dimension_that_does_not_divide_is_named_before_anything_is_read(tmp_path):
    network = reader.abstract_network(tiny.DIT)

    def read():
        raise AssertionError('was read')

    leaves = key_table.named_parameters(nnx.state(network))
    values = {name: Parameter(leaf.shape, np.dtype(leaf.dtype), read) for name, (_, leaf) in leaves.items()}
    where = Partitioner(make_mesh(ParallelConfig(data=1, fsdp=3), jax.devices()[:3]), 'fsdp')
    problem = r'^\S+/kernel: dimension \d \(embed\) is 32, which does not divide by 3 \(config.parallel: fsdp 3\)'
    with pytest.raises(ConfigError, match=problem):
        key_table.build_module(network, values, where)
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_run(tmp_path / 'run', tiny.stage_config(tmp_path / 'vae.safetensors'))
    with pytest.raises(ConfigError, match=problem):
        trained_runs.open_run(tmp_path / 'run', partitioner_of=lambda stage: where)


def test_two_processes_place_their_own_parts():
    address, environment = f'127.0.0.1:{runs.free_port()}', runs.environment(devices=4)
    command = [sys.executable, '-c', TWO_PROCESSES, address]
    started = [
        subprocess.Popen([*command, str(i)], cwd=runs.ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        for process in started:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
    finally:
        for process in started:
            process.kill()
