"""A small stage 2 with captions, and its flow map: trained, resumed, in microbatches, exported, sampled."""

import shutil

import numpy as np
import pytest
from flax import nnx

from fv_jax import convert, export, train
from fv_jax.models.lora import merge_lora
from fv_jax.sample.__main__ import main as sample
from fv_jax.weights import trained_runs
from tests import runs
from tests.sampling import tiny

LORA = "--config.stage.network.lora={'rank': 2, 'alpha': 1.0, 'targets': ('qkv',)}"
ALL, NO_EVAL = '--config.stage.network.lora=none', '--config.loop.eval_every=0'
CLIP = 'tests/data/video/cases/shape/plain.mp4'


def flags(variant, folder, vae, *more):
    """Captioned sprites at the size of a smoke test."""
    return [
        f'--config={runs.ROOT}/configs/stage2.py:{variant}',
        f'--workdir={folder}',
        f'--config.stage.vae={vae}',
        f'--config.stage.network.latent_channels={tiny.VAE_CONFIG.latent_channels}',
        '--config.stage.network.embed_dim=64',
        '--config.stage.network.num_layers=1',
        '--config.stage.network.num_heads=2',
        '--config.stage.network.mlp_dim=64',
        '--config.data.train=sprites:4',
        '--config.data.heldout=sprites',
        '--config.data.frames=9',
        '--config.data.height=32',
        '--config.data.width=48',
        '--config.data.eval_clips=1',
        '--config.data.cache.crop=none',
        '--config.data.loader.batch_size=2',
        '--config.optim.warmup_steps=0',
        '--config.loop.log_every=1',
        '--config.loop.num_steps=4',
        '--config.loop.save_every=2',
        '--config.loop.eval_every=4',
        *more,
    ]


@pytest.fixture(scope='module')
def teacher(vae_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher') / 'run'
    # A rate at which its captions soon have an effect: without any, a student has nothing to learn.
    more = '--config.optim.learning_rate=0.05', '--config.loop.num_steps=10', '--config.loop.save_every=10'
    assert train.main(flags('tiny_captions', folder, vae_file, NO_EVAL, *more)) == 0
    return folder


@pytest.fixture(scope='module', params=[LORA, ALL], ids=['lora', 'all'])
def distilled(request, teacher, vae_file, tmp_path_factory):
    """(flags, folder) of a flow map."""
    more = request.param, f'--config.init_from={teacher}'
    folder = tmp_path_factory.mktemp('flow_map') / 'run'
    assert train.main(flags('distil,tiny=true', folder, vae_file, *more)) == 0
    return more, folder


def model_of(folder, step=None):
    run = trained_runs.open_run(folder, step)
    return run, run.network.model(**run.params)


def test_flow_map_logs_the_distance_to_its_teacher(distilled):
    rows = runs.rows(distilled[1])
    assert {row['target_kind'] for row in rows if 'loss' in row} <= {0.0, 1.0, 2.0}
    (health,) = [row for row in rows if 'health/energy' in row]
    names = [f'{name}_{n}' for name in ('psnr_teacher', 'energy', 'flicker') for n in (1, 2, 5)]
    assert health.keys() >= {f'health/{name}' for name in (*names, 'energy_t/1', 'energy_t/5', 'psnr_of_teacher')}
    assert all(np.isfinite(value) for value in health.values())
    assert not any(name.startswith('health/loss') for name in health)


def test_teacher_of_a_flow_map_is_the_run_that_it_was_distilled_from(distilled, teacher):
    run, model = model_of(distilled[1])
    (_, wanted) = model_of(teacher)
    found = dict(nnx.to_flat_state(nnx.state(run.stage.teacher_of(model))))
    for path, value in nnx.to_flat_state(nnx.state(wanted)):
        np.testing.assert_array_equal(found[path][...], value[...], err_msg=str(path))
    assert np.any(model.interval_embed.out.kernel[...])


def test_resume_of_a_flow_map_is_bit_exact(distilled, vae_file, tmp_path):
    more, whole = distilled
    folder = tmp_path / 'run'
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / 'checkpoints' / '4')
    assert train.main(flags('distil,tiny=true', folder, vae_file, *more)) == 0
    assert runs.losses(folder) == runs.losses(whole)
    runs.assert_same(folder, whole, 4)


def test_microbatches_of_a_flow_map_have_the_same_targets(distilled, vae_file, tmp_path):
    more, whole = distilled
    folder = tmp_path / 'run'
    assert train.main(flags('distil,tiny=true', folder, vae_file, *more, NO_EVAL, '--config.loop.microbatches=2')) == 0
    one, two = runs.losses(whole), runs.losses(folder)
    for step, row in one.items():
        assert row['target_kind'] == two[step]['target_kind']
        np.testing.assert_allclose(
            [row['loss'], row['interval']], [two[step][x] for x in ('loss', 'interval')], rtol=1e-4
        )


@pytest.mark.parametrize('lora', ['keep', 'merge'])
def test_exported_flow_map_knows_its_knots_and_has_no_teacher(distilled, tmp_path, lora, capsys):
    folder = tmp_path / 'exported'
    assert export.main([f'--checkpoint={distilled[1]}', f'--output={folder}', f'--lora={lora}']) == 0
    run, model = model_of(folder)
    _, before = model_of(distilled[1])
    assert not hasattr(model, 'teacher') and not run.stage.config.has_teacher
    assert run.stage.config.num_knots == 5 and not run.stage.is_guided()
    wanted = merge_lora(before) if lora == 'merge' else before
    np.testing.assert_array_equal(model.blocks.mlp.out.kernel[...], wanted.blocks.mlp.out.kernel[...])
    np.testing.assert_array_equal(model.interval_embed.out.kernel[...], before.interval_embed.out.kernel[...])
    assert export.main([f'--checkpoint={distilled[1]}', f'--output={tmp_path}/one.safetensors', f'--lora={lora}']) == 0
    _, small = model_of(tmp_path / 'one.safetensors')
    assert not hasattr(small, 'teacher') and small.config.embed_interval
    assert convert.main([f'--input={distilled[1]}', f'--output={tmp_path}/official.pt']) == 2
    assert 'no place for the knots' in capsys.readouterr().err


@pytest.mark.parametrize('num_steps', [1, 2, 5])
def test_flow_map_is_sampled_by_any_subset_of_its_knots(distilled, tmp_path, capsys, num_steps):
    command = ['clip', f'--checkpoint={distilled[1]}', f'--input={runs.ROOT}/{CLIP}', f'--output={tmp_path}/out.mp4']
    assert sample([*command, f'--stage2.num_steps={num_steps}', '--size=32x48']) == 0
    assert (tmp_path / 'out.mp4').stat().st_size > 1000
    assert 'enhanced without a caption' in capsys.readouterr().out


def test_settings_that_a_flow_map_was_not_trained_for_are_refused(distilled, tmp_path, capsys):
    command = ['clip', f'--checkpoint={distilled[1]}', f'--input={runs.ROOT}/{CLIP}', f'--output={tmp_path}/out.mp4']
    for flag, word in (('num_steps=6', 'from 1 to 5'), ('guidance_scale=3', 'must be 1'), ('shift=3', 'must be')):
        assert sample([*command, f'--stage2.{flag}']) in (1, 2)
        assert word in capsys.readouterr().err


def test_flow_map_refuses_what_is_not_its_teacher(distilled, vae_file, tmp_path, capsys):
    for more, word in (
        ((LORA, '--config.init_from=none'), 'init_from: missing'),
        ((ALL, f'--config.init_from={distilled[1]}'), 'flow map'),
    ):
        assert train.main(flags('distil,tiny=true', tmp_path / 'run', vae_file, *more)) == 2
        assert word in capsys.readouterr().err


def test_bad_step_of_a_flow_map_is_replayed(distilled, vae_file, tmp_path, capsys):
    folder = tmp_path / 'run'
    more = *distilled[0], NO_EVAL, '--config.optim.learning_rate=1e30'
    assert train.main(flags('distil,tiny=true', folder, vae_file, *more)) == 1
    kept = sorted((folder / 'bad_steps').iterdir())[0] / 'step.npz'
    capsys.readouterr()
    assert train.main(['--replay', str(kept)]) in (0, 1)
    assert 'target_kind' in capsys.readouterr().out
