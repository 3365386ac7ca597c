"""Exports: they open like the run, hold its numbers, say where they come from, and run without fv_jax."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax import export, weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.diffusion.time_grids import Times
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models import vae_chunking
from fv_jax.models.lora import LoRAConfig, merge_lora
from fv_jax.stages import registry
from fv_jax.stages.autoencoder import AutoencoderConfig
from fv_jax.stages.low_res import LowResConfig
from fv_jax.stages.registry import StageConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.training import state
from fv_jax.weights import single_file, trained_runs
from fv_jax.weights.fingerprints import params_fingerprint
from fv_jax.weights.layouts import key_table
from tests.sampling import tiny

STEP = 7
WORDS = TextConfig('hash', length=3, dim=8)
LORA = dataclasses.replace(
    tiny.DIT,
    embed_num_frames=False,
    embed_noise_augmentation_timestep=False,
    lora=LoRAConfig(rank=2, targets=('qkv', 'modulation')),
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A run of each stage, with an average that is not what the last step left."""
    folder = tmp_path_factory.mktemp('runs')
    vae = folder / 'vae.safetensors'
    tiny.save_vae(vae)
    stages = {
        'superres': dataclasses.replace(tiny.stage_config(vae), text=WORDS),
        'lowres': StageConfig('lowres', LORA, LowResConfig(), vae=str(vae), text=WORDS),
        'autoencoder': StageConfig('autoencoder', tiny.VAE_CONFIG, AutoencoderConfig()),
    }
    for name, stage in stages.items():
        items = state.to_items(tiny.train_state(registry.build(stage)))
        items['state']['trainable'] = jax.tree.map(lambda x: x + 1, items['params']['trainable'])
        digests = {} if name == 'autoencoder' else {'vae': weights.vae_fingerprint(str(vae)), 'text': 'ab' * 8}
        config = tiny.config(stage) | {'optim': {'ema_decay': 0.99}}
        Checkpoints(folder / name).save(STEP, items, config, digests)
    return folder


def run(*argv):
    return export.main([str(argument) for argument in argv])


def run_export(runs, output, name, *more):
    assert run('--checkpoint', runs / name, '--output', output, *more) == 0
    return trained_runs.open_run(output)


def parameters(opened):
    return key_table.module_parameters(nnx.state(opened.network.model(**opened.params)))


def assert_same(first, second, dtype=np.float32):
    assert first.keys() == second.keys()
    for name in first:
        expected = second[name].numpy().astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(first[name].numpy().astype(np.float32), expected, err_msg=name)


# Folders.


@pytest.mark.parametrize('name', ['superres', 'lowres', 'autoencoder'])
def test_export_folder_opens_like_the_run(runs, tmp_path, name):
    before, after = trained_runs.open_run(runs / name), run_export(runs, tmp_path / 'out', name, '--license', 'CC0-1.0')
    assert after.stage.config == before.stage.config and (after.step, after.notes) == (STEP, ())
    assert after.digests == before.digests
    assert_same(parameters(after), parameters(before))
    assert sorted(path.name for path in (tmp_path / 'out' / 'checkpoints' / str(STEP)).iterdir() if path.is_dir()) == [
        'meta',
        'params',
    ]
    card = (tmp_path / 'out' / 'README.md').read_text()
    for words in (
        f'source run: `{runs / name}`, step {STEP}',
        'parameters: EMA (decay 0.99)',
        f'hash of the parameters: `{params_fingerprint(parameters(before))}`',
        'license: "CC0-1.0"',
        *(f'hash `{digest}`' for digest in before.digests.values()),
    ):
        assert words in card
    (config,) = re.findall(r'```json\n(.*?)```', card, re.DOTALL)
    assert json.loads(config)['stage'] == before.config['stage']


def test_export_last_parameters(runs, tmp_path):
    average, last = (
        trained_runs.open_run(runs / 'lowres'),
        run_export(runs, tmp_path / 'out', 'lowres', '--params', 'last'),
    )
    for before, after in zip(*(jax.tree.leaves(x.params['trainable']) for x in (average, last)), strict=True):
        np.testing.assert_array_equal(after, before + 1)
    for before, after in zip(*(jax.tree.leaves(x.params['frozen']) for x in (average, last)), strict=True):
        np.testing.assert_array_equal(after, before)
    assert 'of the last step' in (tmp_path / 'out' / 'README.md').read_text()
    # An export has no other.
    assert run('--checkpoint', tmp_path / 'out', '--output', tmp_path / 'x', '--params', 'last') == 1


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_export_to_bfloat16(runs, tmp_path, dtype):
    before, after = (
        trained_runs.open_run(runs / 'lowres'),
        run_export(runs, tmp_path / 'out', 'lowres', '--dtype', dtype),
    )
    assert_same(parameters(after), parameters(before), jnp.dtype(dtype))
    kernel = after.params['frozen']['text_embed']['kernel']
    assert kernel.dtype == (jnp.bfloat16 if dtype == 'bfloat16' else jnp.float32)
    stored = export.streaming.CheckpointReader(tmp_path / 'out').arrays()
    assert {str(x.dtype) for x in stored.values()} == {dtype}


def test_export_merges_lora(runs, tmp_path):
    before = trained_runs.open_run(runs / 'lowres')
    after = run_export(runs, tmp_path / 'out', 'lowres', '--lora', 'merge')
    assert after.stage.network.lora is None and not after.params['frozen']
    merged = key_table.module_parameters(nnx.state(merge_lora(before.network.model(**before.params))))
    for name, value in parameters(after).items():
        np.testing.assert_allclose(value.numpy(), merged[name].numpy(), rtol=0, atol=1e-6, err_msg=name)


# Files.


@pytest.mark.parametrize('name', ['superres', 'lowres'])
def test_export_single_file_opens_like_the_run(runs, tmp_path, name):
    before, after = trained_runs.open_run(runs / name), run_export(runs, tmp_path / 'x.safetensors', name)
    assert (after.stage.config, after.stage.network) == (before.stage.config, before.stage.network)
    assert (after.step, after.digests, after.notes) == (STEP, before.digests, ())
    assert after.config['data'] == before.config['data'] and after.vae is not None
    assert_same(parameters(after), parameters(before), np.float16)
    count = sum(x.size for x in jax.tree.leaves(before.params))
    assert 2 * count < (tmp_path / 'x.safetensors').stat().st_size < 2 * count + 12_000


def test_export_a_vae_to_a_single_file(runs, tmp_path, capsys):
    assert run('--checkpoint', runs / 'autoencoder', '--output', tmp_path / 'vae.safetensors') == 0
    assert f'step {STEP}, ' in capsys.readouterr().out
    vae = weights.load_vae(str(tmp_path / 'vae.safetensors'))
    assert_same(
        key_table.module_parameters(nnx.state(vae)), parameters(trained_runs.open_run(runs / 'autoencoder')), np.float16
    )
    with pytest.raises(ValueError, match='is not an exported run in one file'):
        trained_runs.open_run(tmp_path / 'vae.safetensors')


def test_export_refuses_values_out_of_the_range_of_float16(tmp_path):
    values = {'a.b': key_table.Parameter((1,), np.dtype(np.float32), lambda: np.full(1, 1e5, np.float32))}
    with pytest.raises(ValueError, match=r'a\.b: 100000 exceeds the range of float16, 65504'):
        single_file.write(tmp_path / 'x.safetensors', values, tiny.DIT)
    assert not list(tmp_path.iterdir())


# Without fv_jax.


def run_without_fv_jax(folder, name, inputs):
    """Runs the model card's own code in a process that can import neither fv_jax nor flax."""
    card = (folder / 'README.md').read_text()
    (loader,) = re.findall(r'```python\n(folder = .*?)```', card, re.DOTALL)
    np.savez(folder / 'inputs.npz', **{f'{i:02d}': x for i, x in enumerate(inputs)})
    code = f"""
import sys
sys.modules.update(dict.fromkeys(('fv_jax', 'flax', 'orbax', 'ml_collections')))
{loader.replace('FOLDER', str(folder))}
inputs = np.load({str(folder / 'inputs.npz')!r})
np.save({str(folder / 'output.npy')!r}, load({name!r})(*(inputs[i] for i in sorted(inputs))))
try:
    import fv_jax
except ImportError:
    print('fv_jax cannot be imported')
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and 'fv_jax cannot be imported' in done.stdout, done.stderr
    return np.load(folder / 'output.npy')


def test_exported_velocity_runs_without_fv_jax(runs, tmp_path):
    flags = '--export-functions', 'cpu,tpu,cuda', '--size', '9x32x48'
    opened = run_export(runs, tmp_path / 'out', 'superres', *flags)
    rng = np.random.default_rng(0)
    x, text = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 3, 4, 6, 4), (1, 3, 8)))
    stage, model = opened.stage.without_guidance(), opened.network.model(**opened.params)
    expected = stage.velocity_fn(model, jnp.asarray(text), context=SINGLE_DEVICE)(jnp.asarray(x), Times(0.4, 400.0))
    found = run_without_fv_jax(tmp_path / 'out', 'velocity', (x, np.full(1, 400, np.float32), text))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found).max() > 0.1


def test_exported_vae_runs_without_fv_jax(runs, tmp_path):
    flags = '--export-functions', 'cpu,cuda', '--size', '9x16x16', '--dtype', 'bfloat16'
    opened = run_export(runs, tmp_path / 'out', 'autoencoder', *flags)
    vae, video = opened.network.model(**opened.params), np.random.default_rng(0).uniform(-1, 1, (1, 9, 16, 16, 3))
    video = video.astype(np.float32)
    moments = vae_chunking.encode(vae, jnp.asarray(video))
    found = run_without_fv_jax(tmp_path / 'out', 'encode', (video,))
    np.testing.assert_allclose(found, moments, rtol=0, atol=1e-5 * float(jnp.abs(moments).max()))
    z = found[..., : tiny.VAE_CONFIG.latent_channels]
    expected = vae_chunking.decode(vae, jnp.asarray(z))
    decoded = run_without_fv_jax(tmp_path / 'out', 'decode', (z,))
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


# Mistakes.


@pytest.mark.parametrize(
    ('output', 'more', 'words'),
    [
        ('x.pt', (), 'must end in .safetensors, or be a folder'),
        ('none/x', (), 'does not exist'),
        ('x.safetensors', ('--dtype', 'bfloat16'), 'holds parameters in float16 only; give a folder'),
        (
            'x.safetensors',
            ('--export-functions', 'cpu', '--size', '9x32x48'),
            '--export-functions: a file .safetensors holds',
        ),
        ('x', ('--export-functions', 'cpu'), '--export-functions and --size: give both'),
        ('x', ('--export-functions', 'cpu,vulkan', '--size', '9x32x48'), "'vulkan' is not one of cpu, tpu, cuda"),
        ('x', ('--export-functions', 'cpu', '--size', '9x32'), '--size=9x32: give FRAMESxHEIGHTxWIDTH'),
        (
            'x',
            ('--export-functions', 'cpu', '--size', '9x32x40'),
            '--size.width=40: must be a multiple of 16; use 32 or 48',
        ),
        ('', (), 'already exists; choose'),
        ('', ('--overwrite',), 'is a folder that this command did not write'),
        ('../runs', (), 'already exists'),
    ],
)
def test_export_usage_errors_are_one_line(runs, tmp_path, capsys, output, more, words):
    (tmp_path / 'here').mkdir()
    if output == '../runs':
        output = runs / 'superres'
        words = 'is the run'
    assert run('--checkpoint', runs / 'superres', '--output', tmp_path / 'here' / output, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('export: ') and words in line
    assert list((tmp_path / 'here').iterdir()) == []


def test_export_replaces_the_output_only_when_asked(runs, tmp_path):
    run_export(runs, tmp_path / 'out', 'autoencoder')
    assert run('--checkpoint', runs / 'superres', '--output', tmp_path / 'out') == 2
    assert run_export(runs, tmp_path / 'out', 'superres', '--overwrite').config['stage']['kind'] == 'superres'
