"""Bundles of bad steps: what they are run again as."""

import pytest

from configs import stage1, stage2, vae
from fv_jax.assembly import RunConfig
from fv_jax.core.config import build
from fv_jax.running import bundle


@pytest.mark.parametrize('program', [stage1, stage2, vae])
def test_a_step_is_run_again_in_float32(program):
    """The real runs compute in bfloat16; nothing but that changes."""
    config = build(RunConfig, program.get_config().to_dict())
    again = bundle.in_float32(config)
    was, now = (c.stage.dit or c.stage.autoencoder_net for c in (config, again))
    assert (was.dtype, now.dtype) == ('bfloat16', 'float32')
    assert (again.data, again.optim, again.seed) == (config.data, config.optim, config.seed)
