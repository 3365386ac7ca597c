"""The table, what it refuses, and that refusals come before anything is allocated."""

import math
import re

import jax
import pytest

from configs import stage1, stage2, vae
from fv_jax.core import axes
from fv_jax.core.config import ConfigError, build
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import sharding
from fv_jax.parallel.mesh import AXES, ParallelConfig, make_mesh
from fv_jax.parallel.rules import STRATEGIES, Partitioner
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup

LOGICAL = {value for name, value in vars(axes).items() if name.isupper()}


def partitioner(strategy='fsdp_split_frames', **parallel):
    return Partitioner(make_mesh(ParallelConfig(**({'data': 1} | parallel))), strategy)


def run_config(program, variant='', **changes):
    config = program.get_config(variant)
    config.parallel = {'data': 1, **changes.pop('parallel', {'context': -1})}
    for path, value in changes.items():
        group, name = path.split('__')
        config[group].update({name: value})
    return build(TrainConfig, config.to_dict())


def partition(config):
    return make_partitioner(config, make_mesh(config.parallel), OFFICIAL.latent_spec)


def make(config):
    return make_train_setup(config, partition(config), OFFICIAL.latent_spec)


@pytest.mark.parametrize('rules', STRATEGIES.values(), ids=STRATEGIES)
def test_every_logical_axis_has_a_rule_and_a_reason(rules):
    assert rules.keys() == LOGICAL
    for name, rule in rules.items():
        assert len(rule.reason) > 5 and set(rule.mesh_axes) <= set(AXES), name


def test_the_strategies_split_these_axes():
    split = {
        axes.EMBED: ('fsdp', 'context'),
        axes.MODULATION: ('fsdp', 'context'),
        axes.MLP: ('tensor',),
        axes.HEADS: ('tensor',),
        axes.ACT_BATCH: ('data', 'fsdp'),
        axes.ACT_TOKENS: ('context',),
        axes.ACT_HEADS: ('tensor',),
        axes.ACT_MLP: ('tensor',),
    }
    frames = {axes.ACT_WIDTH: ('context', 'tensor')}
    wanted = {
        'fsdp': split,
        'fsdp_split_frames': split | frames,
        'replicated_weights': {name: on for name, on in split.items() if name not in (axes.EMBED, axes.MODULATION)},
        'replicated_split_frames': {axes.ACT_BATCH: ('data', 'fsdp')} | frames,
    }
    found = {
        name: {axis: rule.mesh_axes for axis, rule in rules.items() if rule.mesh_axes}
        for name, rules in STRATEGIES.items()
    }
    assert found == wanted


def test_a_stage_has_a_strategy_and_a_config_can_choose_another():
    mesh = {'context': 8}
    wanted = {stage1: 'fsdp', stage2: 'fsdp_split_frames', vae: 'replicated_split_frames'}
    assert {program: run_config(program).strategy for program in wanted} == wanted
    chosen = run_config(stage2, 'smoke', parallel=mesh | {'strategy': 'replicated_split_frames'})
    whole = make(chosen).abstract_state.trainable
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole))
    split = make(run_config(stage2, 'smoke', parallel=mesh)).abstract_state.trainable
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ConfigError, match=r"^config.parallel.strategy=fsdp_frames: did you mean 'fsdp_split_frames'"):
        run_config(stage2, 'smoke', parallel={'strategy': 'fsdp_frames'})


def test_rules_split_a_dimension_over_its_mesh_axes():
    where = partitioner(fsdp=2, context=4)
    assert (
        where.num_shards(axes.EMBED) == 8 and where.num_shards(axes.ACT_BATCH) == 2 and where.num_shards(axes.MLP) == 1
    )
    kernel = where.sharding((axes.EMBED, None, axes.HEADS), (64, 3, 30), 'a kernel')
    assert kernel.spec == jax.P(('fsdp', 'context'), None, None)
    assert kernel.shard_shape((64, 3, 30)) == (8, 3, 30)


@pytest.mark.parametrize(
    ('program', 'variant', 'least'),
    [(stage2, '', 7.8), (stage1, 'full_ft', 7.8), (stage1, '', 5)],  # some LoRA matrices have no dimension to split
)
def test_rules_leave_an_eighth_of_the_state_on_each_of_eight_chips(program, variant, least):
    state = make(run_config(program, variant, parallel={'fsdp': 2, 'context': -1})).abstract_state
    leaves = jax.tree.leaves(state)
    whole = sum(x.size * x.dtype.itemsize for x in leaves)
    share = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    assert whole / share > least


def test_a_dimension_that_does_not_divide_is_refused_by_name():
    odd = dict(stage2.get_config('smoke').stage.network, mlp_dim=129)
    config = run_config(stage2, 'smoke', stage__network=odd, parallel={'tensor': 2, 'context': -1})
    with pytest.raises(ConfigError) as error:
        make(config)
    assert 'blocks/mlp/hidden/kernel: dimension 2 (mlp) is 129, which does not divide by 2' in str(error.value)
    fix = 'use --config.parallel.data=2 --config.parallel.tensor=1'
    assert str(error.value).endswith(f'(config.parallel: tensor 2); {fix}')


def test_sharding_names_the_largest_mesh_over_which_a_dimension_divides():
    mesh = partitioner('replicated_split_frames', context=4, tensor=2)
    for size, flags in ((12, 'data=2 context=4 tensor=1'), (6, 'data=4 context=2 tensor=1'), (5, 'data=8 context=1')):
        with pytest.raises(ConfigError) as error:
            mesh.sharding((axes.ACT_WIDTH,), (size,), 'x')
        assert ' '.join(f'--config.parallel.{flag}' for flag in flags.split()) in str(error.value)


@pytest.mark.parametrize('devices', [3, 6])
@pytest.mark.parametrize(
    ('program', 'variant'),
    [
        (stage1, ''), (stage1, 'full_ft'), (stage1, 'tiny'), (stage1, 'smoke'), (stage2, ''), (stage2, 'tiny'),
        (stage2, 'smoke'), (stage2, 'head128'), (vae, ''), (vae, 'tiny'), (vae, 'smoke'),
    ],
)  # fmt: skip
def test_errors_on_odd_numbers_of_devices_name_a_way_that_works(program, variant, devices):
    """Following them changes batch size and mesh alone, and ends in a run that can start."""
    config = program.get_config(variant)
    latent_spec = OFFICIAL.latent_spec
    for _ in range(4):
        built = build(TrainConfig, config.to_dict())
        try:
            mesh = make_mesh(built.parallel, jax.devices()[:devices])
            setup = make_train_setup(built, make_partitioner(built, mesh, latent_spec), latent_spec)
            assert jax.tree.leaves(setup.abstract_state)
            return
        except ConfigError as error:
            fix = str(error).rpartition('; use ')[2]
        if flags := re.findall(r'--config\.parallel\.(\w+)=(\d+)', fix):
            config.parallel.update({name: int(size) for name, size in flags})
        else:
            config.data.loader.batch_size = int(re.match(r'\d+', fix).group())
    pytest.fail('four errors, one after the other')


def test_sharding_refuses_a_mesh_axis_used_twice():
    with pytest.raises(ConfigError, match='a kernel: mlp and heads cannot both be split over the mesh axis tensor'):
        partitioner(tensor=8).sharding((axes.MLP, axes.HEADS), (8, 8), 'a kernel')


def test_partitioner_refuses_heads_that_do_not_divide():
    with pytest.raises(ConfigError, match=r'num_heads: .*is 30, which does not divide by 4 .*tensor 4'):
        make(run_config(stage2, parallel={'data': -1, 'tensor': 4}))


def test_partitioner_refuses_a_batch_smaller_than_its_axes():
    for batch, fix in ((4, 'use 8'), (12, 'use 8 or 16')):
        config = run_config(vae, 'smoke', parallel={'data': 4, 'fsdp': 2}, data__loader={'batch_size': batch})
        with pytest.raises(ConfigError, match=rf'batch_size={batch}: does not divide by 8 .*data 4 x fsdp 2.*{fix}'):
            partition(config)


def test_partitioner_refuses_microbatches_that_do_not_divide():
    sizes = {'parallel': {'data': 4, 'fsdp': 2}, 'data__loader': {'batch_size': 24}}
    config = run_config(vae, 'smoke', loop__microbatches=2, **sizes)
    with pytest.raises(ConfigError, match=r'batch_size=24: does not divide by 16 .*microbatches=2\); use 16 or 32'):
        partition(config)
    config = run_config(vae, 'smoke', loop__microbatches=3, **sizes)
    partition(config)


def test_partitioner_checks_every_bucket():
    clip, image, small = (
        {'frames': frames, 'height': height, 'width': width}
        for frames, height, width in ((9, 32, 48), (1, 32, 112), (1, 16, 16))
    )
    data = {'data__buckets': [clip, image], 'data__token_budget': 150}  # 8 clips and 10 images
    config = run_config(stage2, 'smoke', parallel={'data': 8}, **data)
    with pytest.raises(ConfigError, match=r'batch_multiple=1: the batch of 1x32x112=10: does not divide by 8 .*use 8'):
        partition(config)
    config = run_config(stage2, 'smoke', parallel={'data': 8}, data__batch_multiple=8, **data)
    partition(config)
    config = run_config(stage2, 'smoke', parallel={'data': 1, 'context': 8}, data__buckets=[clip, small])
    with pytest.raises(ConfigError, match=r'context=8: .* tokens'):
        partition(config)


def test_partitioner_refuses_more_context_shards_than_tiles():
    where = partitioner(context=8)
    assert [sharding.padded_length(where, n) for n in (8, 50, 64)] == [8, 56, 64]
    with pytest.raises(ConfigError, match=r'context=8: 7 tokens .* fill only 7 chip\(s\); use at most 7'):
        sharding.padded_length(where, 7)
