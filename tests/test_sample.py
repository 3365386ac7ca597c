"""The command, on a run of one checkpoint with random networks."""

import dataclasses
import re
from fractions import Fraction
from pathlib import Path

import av
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax import sample
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.data.video import audio, containers, decoding
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling import metadata, text_to_video
from tests.data import sample_videos
from tests.sampling import tiny


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
    path = tmp_path_factory.mktemp('vae') / 'vae.safetensors'
    tiny.save_vae(path)
    return tiny.stage_config(path)


@pytest.fixture(scope='module')
def run(tmp_path_factory, stage) -> Path:
    folder = tmp_path_factory.mktemp('run')
    tiny.save_run(folder, stage)
    return folder


@pytest.fixture(scope='module')
def clip(tmp_path_factory) -> Path:
    """14 frames of 10x13, 12 a second, with sound."""
    folder = tmp_path_factory.mktemp('clip')
    path = folder / 'clip.mp4'
    odd_sized_clip(path, sample_videos.pattern(14, 10, 13), 12)
    sample_videos.write_with_audio(folder / 'sound.mp4', seconds=2)
    assert audio.copy_audio(folder / 'sound.mp4', path)
    return path


def odd_sized_clip(path: Path, video_FHWC: np.ndarray, fps: int) -> None:
    """Our own writer's chroma needs even sides."""
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libx264', rate=fps, options={'crf': '10'})
        stream.height, stream.width, stream.pix_fmt = *video_FHWC.shape[1:3], 'yuv444p'
        for image in video_FHWC:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        out.mux(stream.encode())


def command(clip: Path, run: Path, output: Path, *more: str) -> int:
    return sample.main(['clip', f'--input={clip}', f'--checkpoint={run}', f'--output={output}', *more])


def test_sample_clip(clip, run, tmp_path, capsys):
    """Three windows of 9 frames; 40x52 rounded to 32x48."""
    output = tmp_path / 'out.mp4'
    output.write_text('something else')
    assert command(clip, run, output, '--num-steps=1', '--overwrite') == 0
    assert [p.name for p in tmp_path.iterdir()] == ['out.mp4']
    info = decoding.probe(output)
    assert (info.height, info.width, info.fps, info.frames) == (32, 48, Fraction(12), 14)
    assert decoding.decode(output).frames.std() > 5
    with av.open(str(output)) as video:
        assert video.streams.video[0].codec_context.name == 'h264'
        sound = video.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(14 / 12, abs=0.05)
    out, err = capsys.readouterr()
    assert f'{clip}: 40x52 is rounded down to 32x48' in out and f'{clip}: 10x13 is cropped to 9x13' in out
    assert f'10x13 to 32x48, 1 step(s) of {run}, windows of 9 frame(s)' in out
    recorded = metadata.from_json(containers.read_comment(output))
    clip_metadata = metadata.ClipMetadata('clip.mp4', 9, 5, 'adaptive', None, True, 'crop')
    assert (recorded.preview, recorded.clip, recorded.fps) == (None, clip_metadata, 12)
    settings = recorded.enhance.settings
    assert (recorded.enhance.seed, settings.num_steps, settings.size) == (0, 1, (32, 48))
    pattern = rf'{re.escape(str(output))}: 32x48, 14 frame\(s\) in [\d.]+ s, [\d.]+ frames/s'
    assert re.fullmatch(pattern, out.splitlines()[-1])
    assert '3/3' in err  # the bar, of windows


# With a model that repeats the frames.


@pytest.fixture
def repeat_pixels(monkeypatch):
    """Records the arguments of `enhance`."""
    calls = []

    def enhance(enhancer, frames, size, *, seed, windows, cuts, framing, color_fix, step_progress):
        calls.append((size, windows, enhancer.tiling))
        for frame in frames:
            yield np.broadcast_to(np.float32(frame.mean() / 127.5 - 1), (1, *size, 3))

    monkeypatch.setattr(text_to_video, 'enhance_clip', enhance)
    return calls


@pytest.mark.parametrize(
    ('more', 'size', 'overlap', 'note'),
    [
        (['--scale=8'], (80, 96), 5, '80x104 is rounded down to 80x96'),
        (['--scale=3.2'], (32, 32), 5, '32x41.6 is rounded down to 32x32'),
        (['--size=16x64', '--overlap=1'], (16, 64), 1, None),
    ],
)
def test_sample_clip_size_and_overlap(more, size, overlap, note, clip, run, repeat_pixels, tmp_path, capsys):
    assert command(clip, run, tmp_path / 'out.mp4', *more) == 0
    ((got, windows, tiling),) = repeat_pixels
    assert tiling is None
    assert got == size and (windows.frames, windows.overlap) == (9, overlap)
    out = capsys.readouterr().out
    assert (note in out) if note else ('rounded' not in out)
    assert '10x13 is cropped to' in out
    assert decoding.decode(tmp_path / 'out.mp4').frames.shape == (14, *size, 3)


def test_sample_clip_with_tiles(clip, run, repeat_pixels, tmp_path):
    assert command(clip, run, tmp_path / 'out.mp4', '--tile-size=16x24', '--tile-overlap=8') == 0
    ((_, _, tiling),) = repeat_pixels
    assert tiling == Tiling((16, 24), 8, tiny.VAE_CONFIG.latent_spec.spatial)


def test_sample_clip_converts_audio_that_mp4_cannot_contain(run, repeat_pixels, tmp_path, capsys):
    sample_videos.write_with_audio(tmp_path / 'clip.avi', seconds=0.5, codec='pcm_u8')
    assert command(tmp_path / 'clip.avi', run, tmp_path / 'out.mp4', '--scale=1') == 0
    assert 'audio (pcm_u8) is converted to AAC' in capsys.readouterr().out
    assert decoding.probe(tmp_path / 'out.mp4').has_audio


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (OSError(28, 'No space left on device'), 1, 'No space left on device'),
        (ValueError('clip.mp4: damaged at frame 3'), 1, 'clip.mp4: damaged at frame 3'),
        (KeyboardInterrupt(), 130, 'interrupted; only complete files were written'),
    ],
)
def test_sample_clip_failure_leaves_the_old_output(error, code, line, clip, run, tmp_path, capsys, monkeypatch):
    def enhance(enhancer, frames, size, **options):
        yield np.zeros((4, *size, 3), np.float32)
        raise error

    monkeypatch.setattr(text_to_video, 'enhance_clip', enhance)
    (tmp_path / 'old.mp4').write_text('precious')
    assert command(clip, run, tmp_path / 'old.mp4', '--overwrite') == code
    assert [p.read_text() for p in tmp_path.iterdir()] == ['precious']
    (messages,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith('sample: ')]
    assert line in messages


# Bad input: one line, and nothing is done.


def assert_refused(capsys, code: int, *words: str) -> None:
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith('sample: ')
    for word in words:
        assert word in line
    assert code in (1, 2) and 'Traceback' not in out


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['--size=100x64'], ('height=100', 'multiple of 16', '96 or 112')),
        (['--size=64x8'], ('width=8', 'multiple of 16', '16')),
        (['--size=64'], ('--size=64', 'HEIGHTxWIDTH')),
        (['--size=64x64', '--scale=2'], ('--scale', '--size')),
        (['--scale=1'], ('--scale=1: of 10x13', 'too small')),
        (['--scale=0'], ('--scale=0', 'positive')),
        (['--scale=nan'], ('--scale', 'nan')),
        (['--num-steps=0'], ('--num-steps=0', 'at least 1')),
        (['--crf=52'], ('--crf=52', '51')),
        (['--seed=-1'], ('--seed=-1', '4294967295')),
        (['--seed=x'], ('--seed', "'x'")),
        (['--overlap=4'], ('overlap=4', 'use 1 or 5')),
        (['--tile-size=64'], ('--tile-size=64', 'HEIGHTxWIDTH')),
        (['--tile-size=100x64'], ('tile_size: height=100', 'multiple of 8')),
        (['--tile-size=64x64', '--tile-overlap=64'], ('tile_overlap=64', 'less than both sides of a tile')),
        (['--tile-overlap=8'], ('--tile-overlap=8', 'without --tile-size')),
        (['--step=3'], ('has no step 3', 'it has 7')),
        (['--num-step=3'], ('--num-step:', '--num-steps')),
        (['--config.seed=3'], ('--config.seed', 'carries its config')),
    ],
)
def test_sample_clip_refuses_invalid_flags(more, words, clip, run, tmp_path, capsys):
    assert command(clip, run, tmp_path / 'out.mp4', *more) == 2
    assert list(tmp_path.iterdir()) == []
    assert_refused(capsys, 2, *words)


def test_sample_clip_refuses_invalid_input(clip, run, tmp_path, capsys):
    output = tmp_path / 'out.mp4'
    text = tmp_path / 'text.mp4'
    text.write_text('not a video')
    for path, word in ((tmp_path / 'none.mp4', 'no such file'), (text, 'not a video')):
        assert command(path, run, output) == 2
        assert_refused(capsys, 2, '--input=', path.name, word)
    assert not output.exists()


def test_sample_clip_refuses_invalid_output(clip, run, tmp_path, capsys):
    there = tmp_path / 'there.mp4'
    there.write_text('precious')
    (tmp_path / 'folder.mp4').mkdir()
    for path, word in (
        (tmp_path / 'out.mkv', 'must end in .mp4'),
        (tmp_path / 'none' / 'out.mp4', 'does not exist'),
        (tmp_path / 'folder.mp4', 'is a folder'),
        (there, '--overwrite'),
    ):
        assert command(clip, run, path) == 2
        assert_refused(capsys, 2, '--output=', path.name, word)
    assert there.read_text() == 'precious'


def test_sample_clip_refuses_invalid_checkpoints(clip, stage, tmp_path, capsys):
    output = tmp_path / 'out.mp4'
    assert command(clip, tmp_path / 'none', output) == 2
    assert_refused(capsys, 2, 'none', 'does not exist')
    assert command(clip, tmp_path, output) == 2
    assert_refused(capsys, 2, 'contains no checkpoints')
    (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
    assert command(clip, tmp_path / 'empty', output) == 2
    assert_refused(capsys, 2, 'empty', 'no completed checkpoint')
    numbers = {'params': {'x': jnp.zeros(3)}}
    autoencoder = {'stage': {'kind': 'autoencoder'}, 'data': {'frames': 9}}
    Checkpoints(tmp_path / 'autoencoder').save(1, numbers, autoencoder)
    assert command(clip, tmp_path / 'autoencoder', output) == 2
    assert_refused(capsys, 2, "holds stage 'autoencoder'; a pipeline has stages of lowres, superres, flow_map")
    first = tiny.first_stage_config(stage.vae)
    tiny.save_run(tmp_path / 'first', first)
    assert command(clip, tmp_path / 'first', output) == 2
    assert_refused(capsys, 2, 'first: contains no stage 2, which enhance needs')
    tiny.save_run(tmp_path / 'other', stage, saved=tiny.wider(stage))
    assert command(clip, tmp_path / 'other', output) == 2
    assert_refused(capsys, 2, 'another architecture', '64')
    tiny.save_run(tmp_path / 'lost', dataclasses.replace(stage, vae=str(tmp_path / 'lost.safetensors')))
    assert command(clip, tmp_path / 'lost', output) == 1
    assert_refused(capsys, 1, 'lost.safetensors')
    assert not output.exists()
