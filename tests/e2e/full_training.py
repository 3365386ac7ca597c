"""Runs that take long: a VAE that is resumed, a run that diverges and is replayed, runs from other runs."""

import copy
import functools
import operator
import re
import shutil

import jax
import numpy as np

from configs import stage2
from fv_jax import train
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.config import build, to_dict
from fv_jax.models.lora import merge_lora
from fv_jax.stages import registry
from fv_jax.training.run import bad_step_dumps
from fv_jax.training.run.setup import TrainConfig, latents_shape
from fv_jax.training.state import ModelDef
from fv_jax.weights import trained_runs
from tests import runs
from tests.sampling import tiny

NO_EVAL = '--config.loop.eval_every=0'


def test_resume_of_vae_training_is_bit_exact(tmp_path):
    whole, folder = tmp_path / 'whole', tmp_path / 'run'
    flags = (
        '--config.loop.num_steps=3',
        '--config.loop.save_every=1',
        '--config.data.height=32',
        '--config.data.width=32',
    )
    assert train.main(runs.autoencoder(whole, *flags)) == 0
    shutil.copytree(whole, folder)
    for step in (2, 3):
        shutil.rmtree(folder / 'checkpoints' / str(step))
    assert train.main(runs.autoencoder(folder, *flags, NO_EVAL)) == 0
    assert runs.losses(folder) == runs.losses(whole)
    runs.assert_same(folder, whole, 3)


def test_train_diverged_run_stops_and_can_be_replayed(vae_file, tmp_path, capsys):
    """Its first step's batch, parameters and keys are kept, and run again without the config."""
    folder = tmp_path / 'run'
    assert train.main(runs.superres(folder, vae_file, NO_EVAL, '--config.optim.learning_rate=1e30')) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert re.search('step 1: update_norm is inf, .*no checkpoint.*earlier checkpoints are kept.*init_from', line)
    assert not any((folder / 'checkpoints').iterdir())
    kept = folder / 'bad_steps' / '1' / 'step.npz'
    assert f'dumped bad step; to replay it: python -m fv_jax.train --replay {kept}' in out
    assert train.main(['--replay', str(kept)]) == 1
    out, err = capsys.readouterr()
    assert 'step 1, dumped as a bad step: update_norm is inf' in out and 'FIRST NON-FINITE RESULT: ' in out and not err
    for arguments, words in (
        (['--replay', str(kept), '--config.seed=1'], ('--config.seed', 'from the dump')),
        (['--replay', str(folder / 'config.json')], ('is not a bad-step dump',)),
        (['--replay', str(folder / 'none')], ('is not a bad-step dump', 'No such file')),
    ):
        assert train.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('train: ') and all(word in line for word in words)


def test_train_init_lora_from_a_full_run_and_full_training_from_a_step_of_it(vae_file, tmp_path):
    """The network of the second run is that of the first plus LoRA; the third starts from their sum."""
    lora = "--config.stage.network.lora={'rank': 2, 'targets': ('qkv',)}"
    folders = [tmp_path / name for name in ('full', 'lora', 'merged')]
    starts = ([], [f'--config.init_from={folders[0]}', lora], [f'--config.init_from={folders[1]}/checkpoints/2'])
    for folder, more in zip(folders, starts, strict=True):
        steps = '--config.loop.num_steps=2', '--config.loop.log_every=2', '--config.optim.warmup_steps=0'
        assert train.main(runs.lowres(folder, vae_file, NO_EVAL, '--config.optim.ema_decay=0', *steps, *more)) == 0
    full, with_lora, merged = (trained_runs.open_run(folder) for folder in folders)
    kernel = 'blocks', 'attention', 'qkv', 'kernel'
    places = full.params['trainable'], with_lora.params['frozen']
    before, frozen = (functools.reduce(operator.getitem, kernel, place) for place in places)
    np.testing.assert_array_equal(before, frozen)
    sum_of_both = merge_lora(with_lora.network.model(**with_lora.params)).blocks.attention.qkv.kernel[...]
    after = functools.reduce(operator.getitem, kernel, merged.params['trainable'])
    assert np.abs(sum_of_both - before).max() > 0 and np.abs(after - sum_of_both).max() < 0.05 * np.abs(before).max()


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
