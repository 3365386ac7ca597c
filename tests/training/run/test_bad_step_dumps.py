"""Dumps of bad steps are replayed in float32."""

import copy
import json
import types

import jax
import numpy as np
import pytest

from configs import stage1, stage2, vae
from fv_jax import train
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.config import build, to_dict
from fv_jax.stages import registry
from fv_jax.training.run import bad_step_dumps
from fv_jax.training.run.setup import TrainConfig, latents_shape
from fv_jax.training.state import ModelDef
from fv_jax.weights import trained_runs
from tests.sampling import tiny


def test_replay_takes_the_generator_of_training_whatever_the_environment_names(tmp_path, monkeypatch):
    record = json.dumps(dict.fromkeys(bad_step_dumps._FIELDS, 0))
    np.savez(tmp_path / 'step.npz', key=np.zeros(2, np.uint32), record=np.array(record))
    read = []
    monkeypatch.setattr(
        bad_step_dumps, 'replay_dump', lambda dump: read.append(dump) or types.SimpleNamespace(is_finite=True)
    )
    monkeypatch.setattr(bad_step_dumps, 'report', lambda dump, found: None)
    with jax.default_prng_impl('rbg'):
        assert train.main([f'--replay={tmp_path / "step.npz"}']) == 0
    assert str(jax.random.key_impl(read[0].key)) == train.PRNG_IMPL


@pytest.mark.parametrize('program', [stage1, stage2, vae])
def test_replay_of_a_dump_is_in_float32(program):
    """The real runs compute in bfloat16; nothing but that changes."""
    config = build(TrainConfig, program.get_config().to_dict())
    again = bad_step_dumps.in_float32(config)
    was, now = (c.stage.network for c in (config, again))
    assert (was.dtype, now.dtype) == ('bfloat16', 'float32')
    assert (again.data, again.optim, again.seed) == (config.data, config.optim, config.seed)


def test_replay_of_a_dump_does_not_depend_on_the_dtype_of_the_run(tmp_path):
    program = stage2.get_config('smoke')
    program.stage.network.update(num_layers=1, dtype='bfloat16')
    config = build(TrainConfig, program.to_dict())
    stage = registry.build(config.stage)
    network = ModelDef.from_stage(stage)
    shapes = jax.eval_shape(lambda key: network.init(stage, key), jax.random.key(0))
    trainable, frozen = tiny.random(shapes, 0.1)
    Checkpoints(tmp_path).save(3, {'params': {'trainable': trainable, 'frozen': frozen}}, to_dict(config), {})
    size, rng = (
        latents_shape(config, config.data.sizes[0], trained_runs.latent_spec(config.stage)),
        np.random.default_rng(0),
    )
    batch = {name: rng.normal(size=size).astype(np.float32) for name in ('z_high_BFHWC', 'z_low_BFHWC')}
    record = {'step': 3, 'kind': 'bad step', 'reason': '', 'params_step': 2, 'metrics': {}, 'config': to_dict(config)}
    other = copy.deepcopy(record)
    other['config']['stage']['network']['dtype'] = 'float32'
    found, expected = (
        bad_step_dumps.replay_dump(bad_step_dumps.BadStepDump(tmp_path, each, batch, jax.random.key(0)))
        for each in (record, other)
    )
    assert found.is_finite and found.metrics == expected.metrics and found.metrics['loss'] > 0
