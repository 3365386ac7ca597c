"""Weights, videos and results in buckets: the commands read and write URLs as they do local paths."""

import json

import numpy as np
import pytest

from fv_jax import evaluate, export, inspect, sample
from fv_jax.core import files
from fv_jax.core.paths import as_path
from fv_jax.data.video import video_io
from tests.sampling import tiny


@pytest.fixture(scope='module')
def local(tmp_path_factory):
    """Both stages with their VAE."""
    folder = tmp_path_factory.mktemp('runs')
    tiny.save_pipeline_and_vae(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(bucket, cache):
    return as_path(f'{bucket.url}/team')


@pytest.fixture
def weights(root, local):
    """Exported runs: folders, or single files where Orbax has no backend."""
    suffix = '' if str(root).startswith('gs://') else '.safetensors'
    files.write_bytes(root / 'vae.safetensors', (local / 'vae.safetensors').read_bytes())
    for name in ('stage1', 'stage2'):
        assert run(export, f'--checkpoint={local / name}', f'--output={root}/weights/{name}{suffix}') == 0
    return root / 'weights'


def run(command, *arguments) -> int:
    return command.main([str(argument) for argument in arguments])


def write_pairs(folder) -> None:
    rng = np.random.default_rng(0)
    for name, size in (('GT', 32), ('LQ', 16), ('other', 32)):
        video = rng.integers(0, 255, (5, size, size, 3), np.uint8)
        video_io.encode(folder / name / 'a.mp4', video, 12)


def test_round_trip(root, weights, bucket, capfd):
    flags = (f'--checkpoint={weights}',)
    files.write_text(root / 'prompts.txt', 'a bee\na red fox\n')
    out = root / 'out'
    preview = 'preview', f'--prompts={root}/prompts.txt', f'--output={out}', *flags
    assert run(sample, *preview) == 0
    names = {f'{i}/{file}' for i in (0, 1) for file in ('preview.mp4', 'latents.safetensors')}
    assert set(files.list_files(out)) == {*names, 'contact_sheet.png'}
    assert run(sample, 'enhance', out / '0', out / '1', *flags) == 0
    assert run(sample, 'reproduce', out / '1' / 'video.mp4', f'--output={root}/again.mp4', *flags) == 0
    first, again = (video_io.decode(path).frames for path in (out / '1' / 'video.mp4', root / 'again.mp4'))
    np.testing.assert_array_equal(first, again)
    write_pairs(root / 'pairs')
    [stage2] = [path for path in weights.iterdir() if path.name.startswith('stage2')]
    measure = f'--checkpoint={stage2}', f'--pairs={root}/pairs', '--num-steps=1', '--vgg-frames=1'
    assert run(evaluate, *measure, f'--output={root}/report') == 0
    report = json.loads((root / 'report' / 'report.json').read_text())
    assert {'bilinear', '1 step', 'other'} <= report['summary'].keys()
    written = files.list_files(root / 'report')
    assert {'report.html', 'report.md', 'clips/a/strip.png', 'clips/a/1_step.mp4'} <= written.keys()
    assert '](clips/a/strip.png)' in (root / 'report' / 'report.md').read_text()
    capfd.readouterr()
    assert run(inspect, stage2) == 0
    printed, error = capfd.readouterr()
    assert error == '' and str(stage2) in printed and '1 parameters' not in printed
    assert not [name for name in bucket.sizes() if '/.' in name]
