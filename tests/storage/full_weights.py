"""Weights of every kind in buckets: read as local ones are, copied once, and converted from URL to URL."""

import json
import pathlib

import jax
import numpy as np
import pytest

from fv_jax import FlashVideo, convert, export, weights
from fv_jax.core import files
from fv_jax.core.paths import as_path
from fv_jax.evaluation.metric_files import read_metric_files
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import reader, trained_runs
from fv_jax.weights.text_encoders import open_text_encoder, text_fingerprint
from tests.sampling import tiny
from tests.small_text import make_folder
from tests.weights.layouts import test_diffusers_folder as diffusers

OFFICIAL = pathlib.Path(__file__).parents[1] / 'parity' / 'official_dev'
NAMES = {'stage1.pt': 'stage1.pt', 'stage2.pt': 'stage2.pt', '3d-vae.pt': '3d-vae.pt', 't5': 't5-v1_1-xxl'}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(bucket):
    return as_path(f'{bucket.url}/weights')


@pytest.fixture
def official(root):
    """The official files of small networks in a bucket."""
    for source, target in NAMES.items():
        upload(OFFICIAL / source, root / 'official' / target)
    return root / 'official'


def upload(source: pathlib.Path, target) -> None:
    for name in files.list_files(source) if source.is_dir() else ['']:
        files.write_bytes(target / name, (source / name).read_bytes())


def run(command, *arguments) -> int:
    return command.main([str(argument) for argument in arguments])


def assert_same_values(first, second) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value.numpy(), second[name].numpy(), err_msg=name)


def test_official_release_is_copied_once(official, bucket):
    before = FlashVideo.from_official(official)
    assert before.stage1.text.open().fingerprint == text_fingerprint(TextConfig(str(OFFICIAL / 't5'), dtype='bfloat16'))
    assert before.stage1.vae.digest == weights.vae_fingerprint(str(OFFICIAL / '3d-vae.pt'))
    sizes = bucket.sizes()
    read = [request.call.name for request in bucket.proxy.requests if request.call.kind == 'read']
    large = [name for name in read if name.endswith(('.pt', '.safetensors'))]
    assert sorted(large) == sorted(name for name in sizes if name.endswith(('.pt', '.safetensors')))
    bucket.proxy.reset()
    again = FlashVideo.from_origin(before.origin)
    assert again.stage1.vae.digest == before.stage1.vae.digest
    assert not [r for r in bucket.proxy.requests if r.call.kind == 'read' and r.call.name.endswith('.pt')]


def test_official_release_names_what_is_missing(official):
    (official / 'stage2.pt').unlink()
    with pytest.raises(FileNotFoundError, match=f'{official}: has no stage2.pt'):
        FlashVideo.from_official(official)
    with pytest.raises(FileNotFoundError, match='none: no such folder; it must contain'):
        FlashVideo.from_official(official.parent / 'none')


def test_damaged_file_is_named_by_its_url(official):
    path = official / 'stage1.pt'
    files.write_bytes(path, path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f'^{path}: not a torch zip file, or truncated'):
        reader.open_weights(path)
    files.write_bytes(path, b'')
    with pytest.raises(ValueError, match=f'^{path}: not a torch zip file, or truncated \\(0 bytes'):
        reader.open_weights(path)


def test_conversion_to_a_run_and_back(official, root, bucket, tmp_path):
    source, run_of = official / 'stage1.pt', root / 'run'
    local = tmp_path / 'run'
    where = local if root.as_posix().startswith('s3://') else run_of
    assert run(convert, f'--input={source}', f'--output={where}') == 0
    meta = trained_runs.open_checkpoint(where, None)[0]
    assert meta['config']['stage']['vae'] == str(official / '3d-vae.pt') and meta['digests'].keys() == {'vae', 'text'}
    assert run(convert, f'--input={where}', f'--output={root}/back.pt') == 0
    assert run(convert, f'--input={OFFICIAL / "stage1.pt"}', f'--output={tmp_path}/own') == 0
    assert run(convert, f'--input={tmp_path}/own', f'--output={tmp_path}/back.pt') == 0
    assert (root / 'back.pt').read_bytes() == (tmp_path / 'back.pt').read_bytes()
    assert_same_values(*(reader.open_weights(path).parameters() for path in (root / 'back.pt', OFFICIAL / 'stage1.pt')))


def test_t5_folder_to_a_run_and_back(gs_bucket, tmp_path):
    root = as_path(gs_bucket.url)
    upload(make_folder(tmp_path / 't5'), root / 't5')
    assert run(convert, f'--input={root}/t5', f'--output={root}/run') == 0
    assert run(convert, f'--input={root}/run', f'--output={root}/back') == 0
    assert set(files.list_files(root / 'back')) == {'config.json', 'model.safetensors', 'spiece.model'}
    configs = [TextConfig(str(path)) for path in (tmp_path / 't5', root / 't5', root / 'back')]
    assert len({text_fingerprint(config).digest for config in configs}) == 1
    texts = [open_text_encoder(config).encode(['a quiet meadow']) for config in configs]
    np.testing.assert_array_equal(texts[0], texts[2])


def test_diffusers_folder(root, tmp_path):
    local = diffusers.write(tmp_path, diffusers.TRANSFORMER, diffusers.random_tensors(diffusers.transformer_shapes()))
    upload(local, root / 'transformer')
    assert weights.is_weights(root / 'transformer') and not weights.is_weights(root)
    found, expected = (reader.open_weights(path) for path in (root / 'transformer', local))
    assert found.config == expected.config and found.notes == expected.notes
    assert_same_values(found.parameters(), expected.parameters())


def test_vae_and_initial_weights(root, tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    upload(tmp_path / 'vae.safetensors', root / 'vae.safetensors')
    name = str(root / 'vae.safetensors')
    assert weights.vae_fingerprint(name) == weights.vae_fingerprint(str(tmp_path / 'vae.safetensors'))
    assert weights.load_vae(name).config == tiny.VAE_CONFIG == weights.vae_config(name)
    upload(OFFICIAL / 'stage2.pt', root / 'stage2.pt')
    network = weights.load_official(root / 'stage2.pt')
    weights.save_official(root / 'saved.safetensors', network)
    config = network.config
    found = weights.init_dit_from_weights(str(root / 'saved.safetensors'), config, jax.random.key(0))
    np.testing.assert_array_equal(found.final_norm.scale[...], network.final_norm.scale[...])


def test_vae_beside_a_run_is_found_before_the_bucket_of_another(root, tmp_path, bucket):
    """A run that was trained on a bucket which this machine does not reach."""
    tiny.save_vae(tmp_path / 'vae.safetensors')
    stage = tiny.stage_config(f'{root}/vae.safetensors')
    upload(tmp_path / 'vae.safetensors', root / 'vae.safetensors')
    tiny.save_run(tmp_path / 'run', stage)
    bucket.proxy.reset()
    meta = trained_runs.open_checkpoint(tmp_path / 'run', None)[0]
    assert trained_runs.read_stage_config(tmp_path / 'run', meta).vae == str(tmp_path / 'vae.safetensors')
    (tmp_path / 'vae.safetensors').unlink()
    assert trained_runs.read_stage_config(tmp_path / 'run', meta).vae == f'{root}/vae.safetensors'


def test_exported_functions(gs_bucket, tmp_path):
    root = as_path(gs_bucket.url)
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_run(tmp_path / 'run', tiny.stage_config(tmp_path / 'vae.safetensors'))
    flags = f'--checkpoint={tmp_path / "run"}', '--export-functions=cpu', '--size=9x32x48'
    for output in (root / 'out', tmp_path / 'out'):
        assert run(export, *flags, f'--output={output}') == 0
    found, expected = (files.list_files(folder / 'forward') for folder in (root / 'out', tmp_path / 'out'))
    assert found.keys() == expected.keys() and len(found) > 1
    assert (root / 'out' / 'README.md').read_text() == (tmp_path / 'out' / 'README.md').read_text()
    name = 'parameters.npz'
    assert found[name].size == expected[name].size
    assert run(export, *flags, f'--output={root}/out') == 2  # exists
    assert run(export, *flags, f'--output={root}/out', '--overwrite') == 0


def test_metric_files_read_what_is_beside_them(root):
    files.write_text(root / 'metrics' / 'weights.json', json.dumps(0.5))
    files.write_text(
        root / 'metrics' / 'grey.py',
        "import json, pathlib\nDIRECTION = 'higher'\n"
        "scale = json.loads(pathlib.Path(__file__).with_name('weights.json').read_text())\n"
        'def score(frames): return scale * frames.mean()\n',
    )
    (metric,) = read_metric_files(root / 'metrics')
    assert metric.name == 'grey' and metric.per_frame(np.full((2, 4, 4, 3), 8, np.uint8)).tolist() == [4.0]
