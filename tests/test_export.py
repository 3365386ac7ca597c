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
from fv_jax.weights import exported_network, hub_push, trained_runs
from fv_jax.weights.fingerprints import params_fingerprint
from fv_jax.weights.layouts import key_table
from tests.hub_cache import COMMIT, make_cache
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
        digests = {} if name == 'autoencoder' else {'vae': weights.encoder_fingerprint(str(vae)), 'text': 'ab' * 8}
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
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == ['README.md', 'config.json', 'model.safetensors']
    card = (tmp_path / 'out' / 'README.md').read_text()
    for words in (
        f'source run: `{runs / name}`, step {STEP}',
        'parameters: EMA (decay 0.99)',
        f'hash of the parameters: `{params_fingerprint(parameters(before))}`',
        'license: "cc0-1.0"',
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
    stored = exported_network.read_tensors(tmp_path / 'out')
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
    with pytest.raises(ValueError, match='is not an exported run'):
        trained_runs.open_run(tmp_path / 'vae.safetensors')


def test_export_refuses_values_out_of_the_range_of_float16(tmp_path):
    values = {'a.b': key_table.Parameter((1,), np.dtype(np.float32), lambda: np.full(1, 1e5, np.float32))}
    with pytest.raises(ValueError, match=r'a\.b: 100000 exceeds the range of float16, 65504'):
        exported_network.write(tmp_path / 'x.safetensors', values, tiny.DIT)
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


# For PyTorch.

WIDE = dataclasses.replace(LORA, mlp_dim=4 * LORA.embed_dim)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """A run with LoRA whose network is that of a class of diffusers."""
    folder = tmp_path_factory.mktemp('wide')
    tiny.save_vae(folder / 'vae.safetensors')
    stage = StageConfig('lowres', WIDE, LowResConfig(text_length=3), vae=str(folder / 'vae.safetensors'), text=WORDS)
    tiny.save_run(folder / 'run', stage, size=(32, 48))
    return folder / 'run'


def test_export_for_diffusers(wide, tmp_path, log_lines):
    flags = '--format', 'diffusers', '--license', 'Apache-2.0', '--base-model', 'user/base'
    assert run('--checkpoint', wide, '--output', tmp_path / 'out', *flags) == 0
    names = sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.*'))
    assert names == [
        'README.md', 'model_index.json', 'pipeline.py', 'scheduler/scheduler_config.json', 'transformer/config.json',
        'transformer/diffusion_pytorch_model.safetensors', 'vae/config.json',
        'vae/diffusion_pytorch_model.safetensors',
    ]  # fmt: skip
    card = (tmp_path / 'out' / 'README.md').read_text()
    for words in (
        'license: "apache-2.0"', 'library_name: "diffusers"', 'pipeline_tag: "text-to-video"',
        'base_model: "user/base"', 'use_dynamic_cfg=True', '## Differences from fv_jax',
    ):  # fmt: skip
        assert words in card
    # LoRA is merged, and all of it is read back.
    found = weights.load_official(tmp_path / 'out' / 'transformer')
    opened = trained_runs.open_run(wide)
    merged = key_table.module_parameters(nnx.state(merge_lora(opened.network.model(**opened.params))))
    assert_same(key_table.module_parameters(nnx.state(found)), merged)
    assert weights.vae_config(str(tmp_path / 'out' / 'vae')) == tiny.VAE_CONFIG
    assert 'note: the timesteps and the noise of each step' in '\n'.join(log_lines)


def test_export_of_a_vae_for_diffusers(runs, tmp_path):
    assert run('--checkpoint', runs / 'autoencoder', '--output', tmp_path / 'out', '--format', 'diffusers') == 0
    assert weights.vae_fingerprint(str(tmp_path / 'out')) == params_fingerprint(
        parameters(trained_runs.open_run(runs / 'autoencoder'))
    )


def test_export_of_lora_and_back(wide, tmp_path):
    assert run('--checkpoint', wide, '--output', tmp_path / 'lora', '--format', 'peft') == 0
    assert sorted(path.name for path in (tmp_path / 'lora').iterdir()) == [
        'README.md',
        'pytorch_lora_weights.safetensors',
    ]
    assert 'rank 2, on `attn1.to_q`' in (tmp_path / 'lora' / 'README.md').read_text()
    # Added to the network in which it is merged, it counts twice.
    assert run('--checkpoint', wide, '--output', tmp_path / 'twice', '--add-lora', tmp_path / 'lora') == 0
    opened, twice = trained_runs.open_run(wide), trained_runs.open_run(tmp_path / 'twice')
    assert twice.stage.network.lora == LoRAConfig(rank=2, alpha=2.0, targets=('qkv', 'modulation'))
    model = opened.network.model(**opened.params)
    plain = {name: value for name, value in parameters(opened).items() if '.lora.' not in name}
    merged = [
        key_table.module_parameters(nnx.state(merge_lora(m))) for m in (model, twice.network.model(**twice.params))
    ]
    for name, value in plain.items():
        once, both = (parts[name].numpy() for parts in merged)
        np.testing.assert_allclose(both, 2 * once - value.numpy(), rtol=0, atol=1e-5, err_msg=name)


def test_export_is_exported_again(runs, tmp_path):
    run_export(runs, tmp_path / 'one', 'lowres')
    assert run('--checkpoint', tmp_path / 'one', '--output', tmp_path / 'two', '--lora', 'merge') == 0
    assert trained_runs.open_run(tmp_path / 'two').stage.network.lora is None
    assert run('--checkpoint', tmp_path / 'one', '--output', tmp_path / 'x', '--params', 'last') == 1


# The Hub.


def test_dry_run_of_a_push(runs, tmp_path, log_lines):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    flags = '--push', 'hf://user/model', '--dry-run', '--license', 'MIT'
    assert run('--checkpoint', runs / 'superres', '--output', tmp_path / 'out', *flags) == 0
    (line,) = [line for line in log_lines if 'would upload' in line]
    assert 'user/model: 3 files' in line and 'README.md, config.json, model.safetensors' in line
    data = huggingface_hub.ModelCard.load(tmp_path / 'out' / 'README.md').data.to_dict()
    assert data == {
        'license': 'mit', 'library_name': 'fv_jax', 'pipeline_tag': 'video-to-video', 'tags': ['jax', 'flashvideo'],
    }  # fmt: skip


def test_push_uploads_the_folder_in_one_commit(runs, tmp_path, monkeypatch, log_lines):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    calls = []

    class Api:
        def __init__(self, **options):
            pass

        def create_repo(self, repo, *, private, exist_ok):
            calls.append((repo, private))

        def create_branch(self, repo, *, branch, exist_ok):
            calls.append(branch)

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), revision))
            raise ConnectionError('no route')

    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    flags = '--push', 'hf://user/model@v2', '--private'
    assert run('--checkpoint', runs / 'autoencoder', '--output', tmp_path / 'out', *flags) == 1
    files = ['README.md', 'config.json', 'model.safetensors']
    assert calls == [('user/model', True), 'v2', ('user/model', files, 'v2')]
    assert trained_runs.open_run(tmp_path / 'out').step == STEP  # it is complete, and can be uploaded later


def test_pickle_is_not_pushed(runs, tmp_path):
    pytest.importorskip('huggingface_hub')
    run_export(runs, tmp_path / 'out', 'autoencoder')
    (tmp_path / 'out' / 'old.pt').write_bytes(b'')
    push = hub_push.Push.from_flag('hf://user/model', False)
    with pytest.raises(ValueError, match=r'old.pt: may hold a pickle'):
        hub_push.check_folder(tmp_path / 'out', push)


def test_weights_on_the_hub_are_read_offline(runs, tmp_path, monkeypatch):
    constants = pytest.importorskip('huggingface_hub.constants')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    before = run_export(runs, tmp_path / 'out', 'superres')
    contents = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    make_cache(tmp_path / 'cache', 'user/model', contents, main=COMMIT)
    vae = (runs / 'vae.safetensors').read_bytes()
    make_cache(tmp_path / 'cache', 'user/vae', {'vae.safetensors': vae}, main=COMMIT)
    assert_same(parameters(trained_runs.open_run('hf://user/model')), parameters(before))
    name = 'hf://user/vae@main/vae.safetensors'
    assert weights.encoder_fingerprint(name) == before.digests['vae']
    assert run('--checkpoint', 'hf://user/model', '--output', tmp_path / 'again.safetensors') == 0
    assert run('--checkpoint', 'hf://user/none', '--output', tmp_path / 'x') == 2
    assert run('--checkpoint', runs / 'superres', '--output', 'hf://user/model') == 2


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
        ('x.safetensors', ('--format', 'peft'), '--format=peft: a file .safetensors holds'),
        ('x', ('--format', 'onnx'), "invalid choice: 'onnx'"),
        ('x', ('--format', 'diffusers', '--export-functions', 'cpu', '--size', '9x32x48'), 'not part of --format'),
        ('x', ('--format', 'peft'), 'the network has no LoRA'),
        ('x', ('--format', 'diffusers'), '--size: is needed'),
        (
            'x',
            ('--format', 'diffusers', '--size', '9x32x48'),
            'network.mlp_dim=32: diffusers has only MLPs of 4 x embed_dim = 128',
        ),
        ('x', ('--format', 'diffusers', '--size', '10x32x48'), '--size.frames=10: a clip must have 1 or 8k+1'),
        ('x', ('--dry-run',), '--dry-run: belongs to --push'),
        ('x', ('--push', 'user/model'), '--push=user/model: expected hf://USER/NAME'),
        ('x', ('--push', 'hf://user/model/vae'), 'names a folder in a model'),
        ('x.safetensors', ('--push', 'hf://user/model'), '--push: uploads a local folder'),
        ('', (), 'already exists; choose'),
        ('', ('--overwrite',), 'is a folder that this command did not write'),
        ('../runs', (), 'already exists'),
    ],
)
def test_export_usage_errors_are_one_line(runs, tmp_path, capsys, output, more, words):
    (tmp_path / 'here').mkdir()
    codes = (1, 2) if words.startswith('network.') else (2,)  # of a network: 1
    if output == '../runs':
        output = runs / 'superres'
        words = 'is the run'
    assert run('--checkpoint', runs / 'superres', '--output', tmp_path / 'here' / output, *more) in codes
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('export: ') and words in line
    assert list((tmp_path / 'here').iterdir()) == []


def test_export_replaces_the_output_only_when_asked(runs, tmp_path):
    run_export(runs, tmp_path / 'out', 'autoencoder')
    assert run('--checkpoint', runs / 'superres', '--output', tmp_path / 'out') == 2
    assert run_export(runs, tmp_path / 'out', 'superres', '--overwrite').config['stage']['kind'] == 'superres'
