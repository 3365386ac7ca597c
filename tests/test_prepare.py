import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from configs.common import parse_variant
from configs.prepare import get_config
from fv_jax import api, prepare, weights
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline, transforms
from fv_jax.data.config import DataConfig
from fv_jax.data.degradation.configs import ModelGuidedConfig
from fv_jax.data.degradation.degradations import GuidedByModel
from fv_jax.data.loader import LoaderConfig, load_batches, load_mixed_batches
from fv_jax.data.shards import provenance, text_provenance
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.shards.shard_files import count_records, list_shards, read_records
from fv_jax.data.video import decoding, encoding
from fv_jax.data.video.clips import ClipsConfig, OfflineLatentsConfig
from fv_jax.models.dit import DiTConfig
from fv_jax.stages.frozen_vae import jit_vae
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.text.hash_encoder import HashTextEncoder
from fv_jax.weights.text_encoders import text_fingerprint
from tests import small_text
from tests.data import sample_videos
from tests.sampling import tiny

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs' / 'prepare.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos of two shots each, one with a caption and in a subfolder.

    Besides, a truncated video and a text with suffixes of videos, and a text file.
    """
    path = tmp_path_factory.mktemp('videos')
    (path / 'more').mkdir()
    sample_videos.write_two_shots(path / 'a.mp4')
    sample_videos.write_two_shots(path / 'more' / 'b.mkv', fps=12)
    (path / 'captions.json').write_text(json.dumps({'more/b.mkv': 'two patterns'}))
    (path / 'broken.mp4').write_bytes((path / 'a.mp4').read_bytes()[:-2000])
    (path / 'text.webm').write_text('not a video')
    (path / 'notes.txt').write_text('not a video either')
    return path


SIZE = ('--config.height=64', '--config.width=96', '--config.crf=4', '--config.clips_per_shot=none')


def run(source: Path, output: Path, *more: str) -> int:
    return prepare.main([f'--input={source}', f'--output={output}', f'--config={CONFIG}:smoke', *SIZE, *more])


def test_prepare_writes_records_and_names_skipped_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(folder, tmp_path / 'out', '--config.margin=0') == prepare.SKIPPED
    out, err = capsys.readouterr()
    assert '8 clips of 9 frames at 64x96 from 2 file(s), in 1 shard(s)' in out
    assert 'captions: 1 file(s) with, 1 without' in out and 'skipped: 2 file(s)' in out
    assert '  broken.mp4: not a video' in out and '  text.webm: not a video' in out
    assert 'text.webm' in err and 'frames/s' in err and '8 clips' in err  # the bar
    read = list(read_records(list_shards(tmp_path / 'out', 'clips')))
    assert [(r['source'], r['start_frame'], r['fps']) for r in read] == [
        *(('a.mp4', start, 24.0) for start in (0, 9, 24, 33)),
        *(('more/b.mkv', start, 12.0) for start in (0, 9, 24, 33)),
    ]
    assert [r.get('caption') for r in read] == [None] * 4 + ['two patterns'] * 4
    source_video = decoding.decode(folder / 'a.mp4').frames.astype(int)
    for record in read[:4]:
        frames = decoding.decode(record['video']).frames
        expected = source_video[record['start_frame'] : record['start_frame'] + 9]
        assert frames.shape == expected.shape and np.abs(frames - expected).mean() < 2
    index = json.loads((tmp_path / 'out' / 'clips.json').read_text())
    assert index['records'] == 8 and index['captioned_clips'] == 4
    assert set(index['skipped']) == {'broken.mp4', 'text.webm'}
    assert config_lib.build(ClipsConfig, index['config']).margin == 0


def test_prepare_replaces_shards_only_when_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(folder / 'a.mp4', tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(folder / 'a.mp4', tmp_path) == 0
    assert 'nothing to add: all of 1 video(s) were prepared before' in capsys.readouterr().out
    assert run(folder / 'a.mp4', tmp_path, '--config.crf=5') == exit_codes.USAGE
    err = capsys.readouterr().err
    assert 'clips.json: was made with other settings: config.crf is 4.0 there and 5.0 here' in err
    assert run(folder / 'text.webm', tmp_path, '--overwrite') == exit_codes.USAGE  # nothing better to put there
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run(folder / 'a.mp4', tmp_path, '--overwrite', '--config.frames=1', '--config.clips_per_shot=2') == 0
    assert count_records(list_shards(tmp_path)) == 4


def test_prepare_default_config(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        dataclasses.replace(config_lib.build(ClipsConfig, get_config().to_dict()), latents=OfflineLatentsConfig())
        == ClipsConfig()
    )
    code = prepare.main([f'--input={folder / "a.mp4"}', f'--output={tmp_path / "out"}'])
    assert code == exit_codes.USAGE and not (tmp_path / 'out').exists()
    assert 'a.mp4: 64x96 is too small for clips of 1072x1920' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--config.frmes=33'], "config.frmes: unknown key; did you mean 'frames'?"),
        (['--config.frames=16'], 'frames=16: a clip must have 1 or 8k+1 frames; use 9 or 17'),
        (['--config.frames=many'], "config.frames: expected int, got 'many'"),
        (['--config.width=100'], 'width=100: must be a multiple of 16; use 96 or 112'),
        (['--config.detector=adaptiv'], "did you mean 'adaptive'?"),
        (['--config.frames'], '--config.frames: needs a value'),
        (['--overwrit'], '--overwrit: unknown flag; did you mean --overwrite?'),
        (['--input=nowhere'], '--input=nowhere: does not exist'),
        (['--config=configs/none.py'], 'file configs/none.py does not exist'),
        ([f'--config={CONFIG}:smok'], "smok: unknown variant; did you mean 'smoke'?"),
        ([f'--config={CONFIG}:embedded,spilt=heldout'], "spilt: unknown field of the variant; did you mean 'split'?"),
        ([f'--config={CONFIG}:embedded,split=held'], "split=held: did you mean 'heldout'?"),
        (['--config.text.encoder=byts'], "byts: no such folder; a text encoder is 'hash' or a T5 folder"),
        (['--config.text.encoder=tests'], 'tests: has no spiece.model'),
        (['--config.text.encoder=hash', '--config.text.dim=60'], 'dim=60: must be a multiple of 8; use 56 or 64'),
        (
            ['--config.text.encoder=hash', '--config.text.masked=true'],
            "text.masked=True: is not an option of the text encoder 'hash'",
        ),
    ],
)
def test_prepare_usage_errors_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    assert run(folder, tmp_path / 'out', *flags) == exit_codes.USAGE
    out, err = capsys.readouterr()
    assert out == '' and message in err and err.count('\n') == 1 and err.startswith('prepare: ')
    assert not (tmp_path / 'out').exists()


def test_prepare_input_errors_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'in').mkdir()
    assert run(tmp_path / 'in', tmp_path / 'out') == exit_codes.USAGE
    assert f'--input={tmp_path / "in"}: contains no videos (mp4, mov, m4v, webm, mkv, avi, ' in capsys.readouterr().err
    (tmp_path / 'in' / 'a.mp4').write_bytes((folder / 'a.mp4').read_bytes())
    (tmp_path / 'in' / 'captions.json').write_text('{')
    assert run(tmp_path / 'in', tmp_path / 'out') == exit_codes.USAGE
    assert 'captions.json: not JSON' in capsys.readouterr().err
    (tmp_path / 'in' / 'captions.json').unlink()
    assert run(tmp_path / 'in', tmp_path / 'out', '--config.frames=49') == exit_codes.USAGE
    assert '(a.mp4: too short: 48 frame(s), and a clip has 49)' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, exit_codes.PREEMPTED)])
def test_prepare_interrupted_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    encoding.encode(tmp_path / 'long.mp4', np.concatenate([sample_videos.pattern(400)] * 5), 24, preset='ultrafast')
    command = [sys.executable, '-m', 'fv_jax.prepare', f'--input={tmp_path}', f'--output={tmp_path / "out" / "clips"}']
    flags = [f'--config={CONFIG}:smoke', *SIZE, '--config.detector=none', '--config.preset=veryslow']
    process = subprocess.Popen(
        [*command, *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        # A shell starts its background jobs, and so these tests, with SIGINT ignored; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    shards = tmp_path / 'out' / 'clips'
    while not list(shards.glob('.clips.partial/.0000000.*/*')):  # the first shard has been begun
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert 'the same command continues' in err.splitlines()[-1] and 'Traceback' not in err
    assert [path.name for path in tmp_path.iterdir()] == ['long.mp4']


def test_prepare_config_variants() -> None:
    fields = {'batch': 4, 'rate': 0.5, 'name': 'x', 'fast': False}
    assert parse_variant('', ('smoke',)) == ('', {})
    assert parse_variant('smoke,batch=8,fast=true', ('smoke', 'tiny'), fields) == (
        'smoke',
        {'batch': 8, 'rate': 0.5, 'name': 'x', 'fast': True},
    )
    name, values = parse_variant('rate=2,name=7', ('smoke',), fields)
    assert name == '' and values['rate'] == 2.0 and type(values['rate']) is float and values['name'] == '7'
    for variant, message in (
        ('smoky', "smoky: unknown variant; did you mean 'smoke'"),
        ('smoke,bach=8', "bach: unknown field of the variant; did you mean 'batch'"),
        ('smoke,tiny', 'tiny: a variant is one name'),
        ('batch=four', 'batch=four: expected int, like 4'),
        ('fast=1', 'fast=1: expected bool'),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_variant(variant, ('smoke', 'tiny'), fields)
    assert fields['batch'] == 4
    with pytest.raises(ConfigError, match='there are none'):
        parse_variant('smoke')


def test_pairs_of_a_config_are_those_of_a_variant_of_degradations() -> None:
    for variant, expected in (('', 0.0), ('tiny,pairs=like_previews', 0.25), ('pairs=weak', 0.0)):
        latents = config_lib.build(ClipsConfig, get_config(variant).to_dict()).latents
        assert latents.model_guided_probability == latents.flow_based_probability == expected
        assert (latents.strong is None) == (variant == 'pairs=weak')
    with pytest.raises(ConfigError, match="pairs=like_preview: did you mean 'like_previews'"):
        get_config('pairs=like_preview')


def test_prepare_stores_text_embeddings_for_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """From the caption of a video to the text embedding of a batch; a video without one has zeros."""
    assert run(folder, tmp_path, '--config.text.encoder=hash') == prepare.SKIPPED
    assert 'text embeddings: 4 clip(s) with one, 4 with zeros, the unconditional input' in capsys.readouterr().out
    encoder = HashTextEncoder()
    expected = encoder.encode(['two patterns'])[0].astype(np.float16)
    read = list(read_records(list_shards(tmp_path)))
    for record in read:
        embedding = expected if record['source'] == 'more/b.mkv' else np.zeros((16, 64))
        assert record['text'].dtype == np.float16
        np.testing.assert_array_equal(record['text'], embedding)
    index = json.loads((tmp_path / 'clips.json').read_text())
    assert index['text'] == {'digest': encoder.fingerprint.digest, 'length': 16, 'dim': 64, 'truncated': {}}
    assert index['config']['text']['encoder'] == 'hash'

    data = DataConfig(LoaderConfig(batch_size=8, num_threads=0), train=str(tmp_path), frames=9, height=64, width=96)
    transform = pipeline.clip_transform(data, low_res=True, training=True)
    source = pipeline.open_source(data.train, data, heldout=False)
    batch = next(load_batches(source, transform, data.loader))
    assert batch['text_BLD'].shape == (8, 16, 64) and batch['text_BLD'].dtype == np.float16
    stage = SuperRes(SuperResConfig(), DiTConfig(text_dim=64))
    text = stage.text(batch | {'z_low_BFHWC': batch['low_res_BFHWC']})
    assert text.dtype == np.float32
    captioned = np.asarray(text).any(axis=(1, 2))
    assert captioned.sum() == 4
    np.testing.assert_array_equal(text[captioned], np.stack([expected] * 4))


def test_prepare_stores_latents(folder: Path, tmp_path: Path) -> None:
    """They are of the clips that would have been stored, and a run with another VAE refuses them."""
    vae = tmp_path / 'vae.safetensors'
    tiny.save_vae(vae)
    flags = [
        '--config.clips_per_shot=1',
        '--config.latents.num_degraded_variants=2',
        '--config.latents.strong_probability=1.0',
    ]
    run(folder, tmp_path / 'clips', *flags)
    assert run(folder, tmp_path / 'latents', *flags, f'--config.latents.vae={vae}') == prepare.SKIPPED
    clips, latents = (list(read_records(list_shards(tmp_path / n))) for n in ('clips', 'latents'))
    assert len(clips) == len(latents) and 'video' not in latents[0]
    jitted = jit_vae(weights.load_vae(str(vae)))
    video = transforms.to_float(decoding.decode(clips[1]['video']).frames)
    np.testing.assert_allclose(latents[1]['z_high'], np.asarray(jitted.encode(video[None])[0], np.float16), atol=1e-3)
    assert latents[1]['z_low'].shape == (2, *latents[1]['z_high'].shape)
    assert not np.array_equal(latents[1]['z_low'][0], latents[1]['z_low'][1])
    index = json.loads((tmp_path / 'latents' / 'clips.json').read_text())
    stored_provenance = index['latents']
    assert 'model_guided' not in index
    assert stored_provenance == {'vae': weights.encoder_fingerprint(str(vae)), 'chunks': [17, 16]}

    data = DataConfig(
        LoaderConfig(batch_size=2, num_threads=0), train=str(tmp_path / 'latents'), frames=9, height=64, width=96
    )
    bad = BadRecords(data.bad_records)
    parts = pipeline.training_sources(data, bad)
    provenance.check_latents(parts, stored_provenance)
    groups = pipeline.group_by_bucket(parts, data, tiny.VAE_CONFIG.latent_spec)
    batch = next(load_mixed_batches(pipeline.make_streams(groups, data, low_res=True), data.loader))
    assert batch['z_high_BFHWC'].shape == batch['z_low_BFHWC'].shape == (2, *latents[1]['z_high'].shape)
    with pytest.raises(ValueError, match=r'its latents have vae \w+, but this run has other; prepare them again'):
        provenance.check_latents(parts, {'vae': 'other', 'chunks': [17, 16]})
    with pytest.raises(ValueError, match='chunks'):
        provenance.check_latents(parts, stored_provenance | {'chunks': [13, 12]})
    wider = dataclasses.replace(data, width=80)
    with pytest.raises(ValueError, match='of 9x64x96, which is the size of no bucket'):
        pipeline.group_by_bucket(parts, wider, tiny.VAE_CONFIG.latent_spec)
    both = dataclasses.replace(data, train=f'{tmp_path}/latents@1+{tmp_path}/clips@1')
    groups = pipeline.group_by_bucket(pipeline.training_sources(both, bad), both, tiny.VAE_CONFIG.latent_spec)
    with pytest.raises(ConfigError, match='bucket 9x64x96 has both clips and latents'):
        pipeline.make_streams(groups, both, low_res=True)


class Model:
    """Degrades a clip to one level."""

    preview = types.SimpleNamespace(digest='0123456789abcdef')

    def __init__(self, config: ModelGuidedConfig, text_digest: str | None):
        assert config.checkpoint == 'embedded' and len(text_digest) == 16

    def __call__(self, frames_FHWC: np.ndarray, drawn: GuidedByModel, text_LD: np.ndarray) -> np.ndarray:
        assert text_LD.shape == (16, 64)
        return np.full_like(frames_FHWC, drawn.seed / 2**32)


def test_prepare_stores_latents_of_model_guided_degradations(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on the clip alone; the fingerprint of the model is stored."""
    monkeypatch.setattr(api, 'open_stage_degradation', Model)
    tiny.save_vae(tmp_path / 'vae.safetensors')
    flags = ['--config.clips_per_shot=1', f'--config.latents.vae={tmp_path}/vae.safetensors']
    flags += ['--config.text.encoder=hash', '--config.latents.num_degraded_variants=2']
    flags += [
        "--config.latents.model_guided={'checkpoint': 'embedded'}",
        '--config.latents.model_guided_probability=1.0',
        '--config.latents.strong_probability=0.0',
    ]
    (tmp_path / 'in').mkdir()
    for name in ('a.mp4', 'c.mp4'):
        (tmp_path / 'in' / name).write_bytes((folder / 'a.mp4').read_bytes())
    assert run(tmp_path / 'in', tmp_path / 'out', *flags) == 0
    records = {record['source']: record for record in read_records(list_shards(tmp_path / 'out'))}
    lows = [record['z_low'] for record in records.values()]
    assert not np.array_equal(lows[0][0], lows[0][1]) and not np.array_equal(lows[0], lows[1])
    assert json.loads((tmp_path / 'out' / 'clips.json').read_text())['model_guided'] == Model.preview.digest
    assert run(tmp_path / 'in' / 'c.mp4', tmp_path / 'alone', *flags) == 0
    alone = list(read_records(list_shards(tmp_path / 'alone')))
    np.testing.assert_array_equal(alone[-1]['z_low'], records['c.mp4']['z_low'])


def test_prepare_skips_videos_with_captions_that_are_not_utf8(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'in').mkdir()
    for name in ('a', 'b'):
        (tmp_path / 'in' / f'{name}.mp4').write_bytes((folder / 'a.mp4').read_bytes())
    (tmp_path / 'in' / 'a.txt').write_bytes('caf\xe9'.encode('latin-1'))
    assert run(tmp_path / 'in', tmp_path / 'out', '--config.clips_per_shot=1') == prepare.SKIPPED
    messages = capsys.readouterr().out
    assert '  a.mp4: ' in messages and 'a.txt: not UTF-8 text' in messages
    assert {r['source'] for r in read_records(list_shards(tmp_path / 'out'))} == {'b.mp4'}
    (tmp_path / 'in' / 'captions.csv').write_bytes(b'\xff\xfe')
    assert run(tmp_path / 'in', tmp_path / 'other') == exit_codes.USAGE
    assert 'captions.csv: not UTF-8 text' in capsys.readouterr().err


def test_prepare_embeddings_of_two_encoders_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, length in (('a', 8), ('b', 12)):
        flags = ['--config.clips_per_shot=1', '--config.text.encoder=hash', f'--config.text.length={length}']
        run(folder, tmp_path / name, *flags)
    data = DataConfig(LoaderConfig(batch_size=2), train=f'{tmp_path}/a@1+{tmp_path}/b@1')
    parts = pipeline.training_sources(data, BadRecords(data.bad_records))
    config, found = (
        TextConfig('hash', length=8),
        [text_provenance.stored_fingerprints(part.name, part.source) for part in parts],
    )
    own = text_fingerprint(config)
    assert text_provenance.check_fingerprints(found[0], config, own, own.dim, online=True) == own
    with pytest.raises(ConfigError, match=r'b/clips.json: its text embeddings are of encoder \w+.*with one encoder'):
        text_provenance.check_fingerprints(found[0] | found[1], config, own, own.dim, online=True)


def test_prepare_with_t5_reports_truncated_captions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    t5 = small_text.make_folder(tmp_path / 't5')
    for name, caption in (('long', 'a beach ' * 9), ('odd', 'half \ud83d'), ('short', 'left')):
        (tmp_path / 'in' / name).mkdir(parents=True)
        (tmp_path / 'in' / name / 'a.mp4').write_bytes((folder / 'a.mp4').read_bytes())
        (tmp_path / 'in' / name / 'captions.json').write_text(json.dumps({'a.mp4': caption}))
    flags = [f'--config.text.encoder={t5}', '--config.text.length=5', '--config.clips_per_shot=1']
    assert run(tmp_path / 'in', tmp_path / 'out', *flags) == prepare.SKIPPED
    out = capsys.readouterr().out
    assert 'long/a.mp4: the text has ' in out and 'only the first 4 are used' in out and 'short/a.mp4' not in out
    assert 'odd/a.mp4: its caption cannot be encoded: the text is not valid Unicode' in out
    read = list(read_records(list_shards(tmp_path / 'out')))
    assert [r['source'] for r in read] == ['long/a.mp4'] * 2 + ['short/a.mp4'] * 2
    assert {r['text'].shape for r in read} == {(5, small_text.SMALL.embed_dim)}
    np.testing.assert_array_equal(read[0]['text'], read[1]['text'])
    assert np.abs(read[0]['text'] - read[2]['text']).max() > 0.1
    index = json.loads((tmp_path / 'out' / 'clips.json').read_text())
    assert list(index['text']['truncated']) == ['long/a.mp4'] and len(index['text']['digest']) == 16
