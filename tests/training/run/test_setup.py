"""What a run's configuration is refused for because of its stage."""

import pytest

from configs import stage1, stage2
from fv_jax.core.config import ConfigError, build
from fv_jax.stages.super_res import SuperRes
from fv_jax.training.run.setup import TrainConfig


def config(program, **changes):
    found = program.get_config('smoke')
    for path, value in changes.items():
        group, name = path.split('__')
        found[group][name] = value
    return build(TrainConfig, found.to_dict())


def test_pairs_need_degraded_clips():
    cache = {'num_degraded_variants': 0, 'crop': None}
    assert config(stage1, data__cache=cache).data.cache.num_degraded_variants == 0
    with pytest.raises(ConfigError, match=r'data\.cache\.num_degraded_variants=0: stage superres needs'):
        config(stage2, data__cache=cache)


def test_a_stage_that_takes_the_average_needs_one(monkeypatch):
    assert config(stage2, optim__ema_decay=0.0).optim.ema_decay == 0
    monkeypatch.setattr(SuperRes, 'takes_average', True)
    assert config(stage2, optim__ema_decay=0.9).optim.ema_decay == 0.9
    with pytest.raises(ConfigError, match=r'optim\.ema_decay=0: the loss of stage superres needs averaged parameters'):
        config(stage2, optim__ema_decay=0.0)
