"""`init_from` over a mesh: every device holds its own part of the other run's parameters, LoRA added or merged."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import stage1
from fv_jax.core.config import build
from fv_jax.models.lora import LoRAConfig
from fv_jax.parallel.mesh import make_mesh
from fv_jax.training.run.init_params import load_init_params
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup
from fv_jax.weights import trained_runs
from tests.sampling import tiny

LORA = dataclasses.replace(tiny.FIRST_DIT, lora=LoRAConfig(rank=2, targets=('qkv',)))


@pytest.mark.parametrize(('saved', 'wanted'), [(tiny.FIRST_DIT, LORA), (LORA, tiny.FIRST_DIT), (LORA, LORA)])
def test_parameters_of_another_run_are_sharded_like_new_ones(saved, wanted, tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_run(tmp_path / 'run', tiny.first_stage_config(tmp_path / 'vae.safetensors', dit=saved))
    loaded = []
    for devices in (1, 8):
        config = stage1.get_config('smoke')
        config.data.loader.batch_size, config.parallel = 8, {'data': 1, 'fsdp': devices}
        stage = tiny.first_stage_config(tmp_path / 'vae.safetensors', dit=wanted)
        built = dataclasses.replace(build(TrainConfig, config.to_dict()), stage=stage)
        mesh, latent_spec = make_mesh(built.parallel, jax.devices()[:devices]), trained_runs.latent_spec(stage)
        setup = make_train_setup(built, make_partitioner(built, mesh, latent_spec), latent_spec)
        params = load_init_params(setup, str(tmp_path / 'run'))
        for part, shardings in zip(params, (setup.shardings.trainable, setup.shardings.frozen), strict=True):
            assert all(leaf.sharding == s for leaf, s in zip(*map(jax.tree.leaves, (part, shardings)), strict=True))
        loaded.append(params)
    leaves = jax.tree.leaves(loaded[1])
    assert sum(leaf.addressable_shards[0].data.size for leaf in leaves) < 0.5 * sum(leaf.size for leaf in leaves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *loaded)
