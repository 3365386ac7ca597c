"""Weights, videos and results in buckets: the commands read and write URLs as they do local paths."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from fv_jax import FlashVideo, degrade, evaluate, export, inspect, plan, sample
from fv_jax.core import files
from fv_jax.core.paths import as_path
from fv_jax.data.video import decoding, encoding
from fv_jax.data.video.captions import Captions
from fv_jax.evaluation import clip_sources
from tests.data import sample_videos
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
    """Exported runs."""
    files.write_bytes(root / 'vae.safetensors', (local / 'vae.safetensors').read_bytes())
    for name in ('stage1', 'stage2'):
        assert run(export, f'--checkpoint={local / name}', f'--output={root}/weights/{name}') == 0
    return root / 'weights'


def run(command, *arguments) -> int:
    return command.main([str(argument) for argument in arguments])


def write_pairs(folder) -> None:
    rng = np.random.default_rng(0)
    for name, size in (('GT', 32), ('LQ', 16), ('other', 32)):
        video = rng.integers(0, 255, (5, size, size, 3), np.uint8)
        encoding.encode(folder / name / 'a.mp4', video, 12)


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
    first, again = (decoding.decode(path).frames for path in (out / '1' / 'video.mp4', root / 'again.mp4'))
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


def test_python_api(root, weights):
    fv = FlashVideo.from_checkpoint(str(weights))
    preview = fv.preview('a bee')
    preview.save(f'{root}/preview.mp4')
    video = fv.enhance(f'{root}/preview.mp4')  # as a clip
    video.save(root / 'video.mp4')
    assert decoding.decode(root / 'video.mp4').frames.shape == video.frames.shape
    with pytest.raises(FileNotFoundError, match='bucket none-of-this-name does not exist'):
        FlashVideo.from_checkpoint(f'{str(root).partition("://")[0]}://none-of-this-name/run')


def test_a_folder_of_videos_is_copied_one_at_a_time(root, monkeypatch):
    rng = np.random.default_rng(0)
    for name in 'abc':
        encoding.encode(root / 'videos' / f'{name}.mp4', rng.integers(0, 255, (5, 64, 64, 3), np.uint8), 12, crf=10)
    files.write_bytes(root / 'videos' / 'frames' / '1.png', png(8))
    files.write_text(root / 'videos' / 'notes.txt', 'neither a video nor a folder')
    largest = max(info.size for info in files.list_files(root / 'videos').values())
    monkeypatch.setenv('FV_JAX_CACHE_GB', str(1.5 * largest / 1e9))
    reading = clip_sources.Reading(multiple=16, max_frames=5, seed=0, scale=2.0)
    clips = [load() for load in clip_sources.truth_clips(root / 'videos', reading)[:3]]
    assert [clip.name for clip in clips] == ['a', 'b', 'c'] and {clip.size for clip in clips} == {(64, 64)}
    assert list(clip_sources.list_videos(root / 'videos')) == ['a', 'b', 'c', 'frames']
    assert clip_sources.read_video(root / 'videos' / 'frames', 5).frames.tolist() == np.full((1, 8, 8, 3), 8).tolist()


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), side, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def test_degradations_plans_and_captions(root):
    encoding.encode(root / 'clip.mp4', sample_videos.pattern(3, 64, 96), 12)
    size = '--frames=3', '--height=64', '--width=96', '--num-samples=1'
    assert run(degrade, f'--input={root}/clip.mp4', f'--output={root}/sheet.png', *size) == 0
    assert (root / 'sheet.png').read_bytes().startswith(b'\x89PNG')
    files.write_bytes(root / 'clip.txt', b'\xef\xbb\xbfa bee\r\n')
    files.write_text(root / 'captions.json', json.dumps({'sub/other.mp4': 'a fox'}))
    captions = Captions(root)
    assert [captions.find(root / name) for name in ('clip.mp4', 'sub/other.mp4', 'x.mp4')] == ['a bee', 'a fox', None]
    assert run(plan, '--topology=h100-1', '--only=sample', f'--json={root}/plan.json') in (0, 3)
    assert 'suggestions' in json.loads((root / 'plan.json').read_text())
