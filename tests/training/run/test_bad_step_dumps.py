"""Dumps of bad steps are replayed in float32."""

import json
import types

import jax
import numpy as np
import pytest

from configs import stage1, stage2, vae
from fv_jax import train
from fv_jax.core.config import build
from fv_jax.training.run import bad_step_dumps
from fv_jax.training.run.setup import TrainConfig


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
