"""What a run's configuration is refused for because of its stage."""

import functools
from operator import getitem

import pytest

from configs import stage1, stage2
from fv_jax.core.config import ConfigError, build
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.planning import planner
from fv_jax.stages.super_res import SuperRes
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup


def config(program, **changes):
    found = program.get_config('smoke')
    for path, value in changes.items():
        *groups, name = path.replace('__', '.').split('.')
        functools.reduce(getitem, groups, found)[name] = value
    return build(TrainConfig, found.to_dict())


def test_train_config_of_stage_2_requires_degraded_clips():
    cache = {'num_degraded_variants': 0, 'crop': None}
    assert config(stage1, data__cache=cache).data.cache.num_degraded_variants == 0
    with pytest.raises(ConfigError, match=r'data\.cache\.num_degraded_variants=0: stage superres needs'):
        config(stage2, data__cache=cache)


def test_train_config_requires_ema_for_stages_that_take_it(monkeypatch):
    assert config(stage2, optim__ema_decay=0.0).optim.ema_decay == 0
    monkeypatch.setattr(SuperRes, 'takes_average', True)
    assert config(stage2, optim__ema_decay=0.9).optim.ema_decay == 0.9
    with pytest.raises(ConfigError, match=r'optim\.ema_decay=0: the loss of stage superres needs averaged parameters'):
        config(stage2, optim__ema_decay=0.0)


@pytest.mark.parametrize(
    ('stage', 'changes', 'refused'),
    [
        (stage2, {'param_dtype': 'bfloat16'}, True),
        (stage2, {'dtype': 'bfloat16'}, False),
        # The parameters of LoRA are float32, whatever those of the frozen network are.
        (stage1, {'param_dtype': 'bfloat16', 'lora': {'rank': 2, 'alpha': 1.0, 'targets': ('qkv',)}}, False),
    ],
)
def test_train_setup_requires_float32_trainable_parameters(stage, changes, refused):
    given = config(stage, **{f'stage__network__{name}': value for name, value in changes.items()})
    spec = planner.latent_spec(given)
    partitioner = make_partitioner(given, make_mesh(ParallelConfig(data=1)), spec)
    if refused:
        with pytest.raises(ConfigError, match=r'stage\.network\.param_dtype=bfloat16: trainable .* use float32'):
            make_train_setup(given, partitioner, spec)
    else:
        assert make_train_setup(given, partitioner, spec).config.stage.network.dtype in ('float32', 'bfloat16')
