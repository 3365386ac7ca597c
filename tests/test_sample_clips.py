"""Many clips, images and sequences of them in `sample clip`, with a model that repeats the frames."""

import dataclasses
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fv_jax import api, export, sample
from fv_jax.data import image_files
from fv_jax.data.images import read_image
from fv_jax.data.transforms import to_float
from fv_jax.data.video import containers, decoding, encoding
from fv_jax.sampling import metadata, text_to_video
from tests.data import sample_videos
from tests.sampling import tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('run')
    tiny.save_vae(folder / 'vae.safetensors')
    tiny.save_run(folder / 'run', tiny.stage_config(folder / 'vae.safetensors'))
    return folder / 'run'


@pytest.fixture(scope='module')
def fv(run):
    return api.FlashVideo.from_checkpoint(run)


@pytest.fixture
def calls(fv, monkeypatch):
    """Enlarges frames twice by repeating pixels; fails at frames that are white. Records the number of frames."""
    found = []

    def enhance(enhancer, frames, size, **options):
        count = 0
        for frame in frames:
            if frame.min() == 255:
                raise ValueError('not finite')
            count += 1
            yield to_float(frame.repeat(2, 0).repeat(2, 1)[None])
        found.append((count, options['cuts']))

    monkeypatch.setattr(text_to_video, 'enhance_clip', enhance)
    monkeypatch.setattr(sample.pipeline, 'open_pipeline', lambda arguments, step: fv)  # which takes a second
    return found


def command(run: Path, inputs, output: Path, *more: str) -> int:
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return sample.main(
        ['clip', '--input', *map(str, inputs), f'--checkpoint={run}', f'--output={output}', '--scale=2', *more]
    )


def video(frames=3, seed=0):
    return sample_videos.pattern(frames, 32, 48, seed=seed)


def write_images(folder: Path, frames, name='frame_{:04d}.png', first=1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        image_files.write_image(folder / name.format(first + i), frame)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two videos of one name, one in a subfolder, an image, a sequence, and what is none of these."""
    root = tmp_path / 'in'
    (root / 'more').mkdir(parents=True)
    for i, name in enumerate(('a.mp4', 'more/b.mp4')):
        encoding.encode(root / name, video(seed=i), 24, crf=4)
    shutil.copy(root / 'a.mp4', root / 'a.mov')
    image_files.write_image(root / 'photo.jpg', video(1)[0])
    write_images(root / 'shot 1', video(4))
    (root / 'notes.txt').write_text('not a video')
    (root / '.hidden.mp4').write_text('not a video')
    return root


OUTPUTS = {'a.mp4.mp4', 'a.mov.mp4', 'more/b.mp4', 'photo.jpg', *(f'shot 1/frame_000{i}.png' for i in range(1, 5))}


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


def mean_difference(a, b) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_folder_is_enhanced_and_continued(folder, run, calls, tmp_path, capsys):
    output = tmp_path / 'out'
    assert command(run, folder, output) == 0
    assert written(output) == OUTPUTS and len(calls) == 5
    out = capsys.readouterr().out
    assert '5 clip(s), 0 exist already' in out and 'shot 1: 4 numbered images of one size' in out
    large = video(4).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(read_image(output / 'shot 1' / 'frame_0002.png'), large[1])
    assert mean_difference(read_image(output / 'photo.jpg'), large[0]) < 3
    assert (
        mean_difference(decoding.decode(output / 'more' / 'b.mp4').frames, video(seed=1).repeat(2, 1).repeat(2, 2)) < 3
    )
    before = {name: (output / name).stat().st_mtime_ns for name in OUTPUTS}
    for name in ('more/b.mp4', 'photo.jpg'):
        (output / name).unlink()
    shutil.rmtree(output / 'shot 1')
    calls.clear()
    assert command(run, folder, output) == 0
    assert written(output) == OUTPUTS and len(calls) == 3
    assert '5 clip(s), 2 exist already' in capsys.readouterr().out
    assert (output / 'a.mov.mp4').stat().st_mtime_ns == before['a.mov.mp4']


def test_folder_that_differs_is_refused(folder, run, calls, tmp_path, capsys):
    output = tmp_path / 'out'
    assert command(run, folder, output) == 0
    calls.clear()
    for flags, words in (
        (['--seed=1'], 'enhance.seed=0 instead of 1'),
        (['--no-color-fix'], 'clip.color_fix=True instead of False'),
        (['--fit=pad'], 'clip.fit=crop instead of pad'),
        (['--codec=hevc10'], 'codec=h264 instead of hevc10'),
    ):
        assert command(run, folder, output, *flags) == 2
        assert words in capsys.readouterr().err and not calls
    assert command(run, folder, output, '--seed=1', '--overwrite') == 0
    assert len(calls) == 5


@pytest.mark.parametrize('first', [True, False])
def test_odd_files_do_not_end_a_list(first, folder, run, calls, tmp_path, capsys):
    """Not a video, an image that is none, a damaged frame of a sequence, a clip that is too small, one that fails."""
    prefix = '0' if first else 'z'
    (folder / f'{prefix}1.mp4').write_text('not a video')
    (folder / f'{prefix}2.png').write_text('not an image')
    encoding.encode(folder / f'{prefix}3.mp4', np.zeros((2, 4, 4, 3), np.uint8), 24)
    encoding.encode(folder / f'{prefix}4.mp4', np.full((2, 32, 32, 3), 255, np.uint8), 24)
    write_images(folder / f'{prefix}5', video(3))
    (folder / f'{prefix}5' / 'frame_0002.png').write_text('not an image')
    output = tmp_path / 'out'
    assert command(run, folder, output) == 1
    assert written(output) == OUTPUTS and len(calls) == 5
    out, err = capsys.readouterr()
    for name, words in (
        ('1.mp4', 'not a video'),
        ('2.png', 'not an image'),
        ('3.mp4', 'too small'),
        ('4.mp4', 'not finite'),
        ('5', 'frame_0002.png: not an image'),
    ):
        (line,) = [line for line in out.splitlines() if f'{folder}/{prefix}{name}: failed' in line]
        assert words in line
    (line,) = [line for line in err.splitlines() if line.startswith('sample: ')]
    assert '5 of 10 clips failed' in line and f'{prefix}1.mp4' in line


def test_list_ends_where_nothing_can_be_written(folder, run, calls, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(sample.clip.clip_outputs, 'write_output', fail)
    assert command(run, folder, tmp_path / 'out') == 1
    assert 'No space left on device' in capsys.readouterr().err and not calls


def test_several_inputs(folder, run, calls, tmp_path, capsys):
    output = tmp_path / 'out'
    assert command(run, [folder / 'a.mp4', folder / 'photo.jpg', folder / 'shot 1'], output, '--images=separate') == 0
    assert written(output) == {'a.mp4', 'photo.jpg', *(f'frame_000{i}.png' for i in range(1, 5))} and len(calls) == 6
    for inputs, output, words in (
        ([folder / 'a.mp4', folder / 'a.mp4'], tmp_path / 'o', 'has the name of'),
        ([folder / 'a.mp4', folder / 'photo.jpg'], tmp_path / 'o.mp4', '2 clip(s) are enhanced; name a folder'),
        (folder, folder / 'out', 'is in the folder of the input'),
        (folder, folder, 'is in the folder of the input'),
    ):
        assert command(run, inputs, output) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.JPEG', '.webp'])
def test_image_in_and_out(suffix, run, calls, tmp_path):
    image_files.write_image(tmp_path / f'a{suffix}', video(1)[0])
    output = tmp_path / f'b{suffix}'
    assert command(run, tmp_path / f'a{suffix}', output) == 0
    made = metadata.from_json(image_files.read_comment(output))
    assert made.clip.name == f'a{suffix}' and made.enhance.settings.size == (64, 96)
    assert Image.open(output).format == {'.png': 'PNG', '.webp': 'WEBP'}.get(suffix, 'JPEG')
    wanted = read_image(tmp_path / f'a{suffix}').repeat(2, 0).repeat(2, 1)
    assert mean_difference(read_image(output), wanted) <= (0 if suffix == '.png' else 3)
    assert command(run, tmp_path / f'a{suffix}', output) == 2  # exists


def test_images_between_formats_and_videos(run, calls, tmp_path, capsys):
    large = video(3).repeat(2, 1).repeat(2, 2)
    write_images(tmp_path / 'in', video(3), 'g{:03d}.png', 98)
    (tmp_path / 'out').mkdir()
    assert command(run, tmp_path / 'in' / 'g%03d.png', tmp_path / 'out' / 'h_%d.png') == 0
    assert written(tmp_path / 'out') == {'h_98.png', 'h_99.png', 'h_100.png'} and calls == [(3, [])]
    np.testing.assert_array_equal(read_image(tmp_path / 'out' / 'h_100.png'), large[2])
    assert command(run, tmp_path / 'in' / 'g%03d.png', tmp_path / 'out' / 'h_%d.png') == 2
    assert 'already exists' in capsys.readouterr().err
    assert command(run, tmp_path / 'in' / 'g%03d.png', tmp_path / 'a.mp4', '--fps=12.5', '--crf=2') == 0
    found = decoding.decode(tmp_path / 'a.mp4')
    assert found.fps == 12.5 and mean_difference(found.frames, large) < 3
    assert command(run, tmp_path / 'a.mp4', tmp_path / 'out' / 'v_%03d.webp') == 0
    assert written(tmp_path / 'out') >= {'v_001.webp', 'v_002.webp', 'v_003.webp'}
    (tmp_path / 'in' / 'g099.png').unlink()
    assert command(run, tmp_path / 'in' / 'g%03d.png', tmp_path / 'b.mp4') == 0
    assert '1 number(s) between 98 and 100 are missing' in capsys.readouterr().out and calls[-1] == (2, [])


def test_folder_of_numbered_images_alone(run, calls, tmp_path, capsys):
    """It is one clip; with images of several sizes, or with other names, every image is enhanced by itself."""
    write_images(tmp_path / 'in', video(12), 'frame{}.png', 1)
    assert command(run, tmp_path / 'in', tmp_path / 'out') == 0 and calls == [(12, [])]
    large = video(12).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(read_image(tmp_path / 'out' / 'frame10.png'), large[9])  # in natural order
    assert command(run, tmp_path / 'in', tmp_path / 'all.mp4') == 0
    assert command(run, tmp_path / 'in', tmp_path / 'out2', '--images=separate') == 0 and calls[2:] == [(1, [])] * 12
    calls.clear()
    image_files.write_image(tmp_path / 'in' / 'frame13.png', video(1)[0, :, :32])
    assert command(run, tmp_path / 'in', tmp_path / 'out3') == 0 and len(calls) == 13
    calls.clear()
    assert command(run, tmp_path / 'in', tmp_path / 'out4', '--images=sequence') == 1
    assert 'frame 12 is 32x32, the ones before 32x48' in capsys.readouterr().err


def test_cuts_are_found_and_reported(run, calls, tmp_path, capsys):
    encoding.encode(tmp_path / 'a.mp4', np.concatenate([video(9), 255 - video(9, seed=2)]), 24)
    assert command(run, tmp_path / 'a.mp4', tmp_path / 'b.mp4') == 0
    assert calls == [(18, [9])] and '1 cut(s), at frame 9, each of which starts a new window' in capsys.readouterr().out
    assert command(run, tmp_path / 'a.mp4', tmp_path / 'c.mp4', '--shots=none') == 0
    assert calls[1] == (18, []) and 'cut(s)' not in capsys.readouterr().out
    assert command(run, tmp_path / 'a.mp4', tmp_path / 'd.mp4', '--shot-threshold=-1') == 2
    assert 'shot_threshold' in capsys.readouterr().err


def test_hevc_of_10_bits_keeps_audio(run, calls, tmp_path):
    sample_videos.write_with_audio(tmp_path / 'a.mp4', 0.5)
    assert command(run, tmp_path / 'a.mp4', tmp_path / 'b.mp4', '--codec=hevc10', '--crf=8') == 0
    with av.open(str(tmp_path / 'b.mp4')) as container:
        stream = container.streams.video[0]
        found = stream.codec_context.name, stream.codec_context.codec_tag, stream.format.name
        assert found == ('hevc', 'hvc1', 'yuv420p10le') and container.streams.audio
    made = metadata.from_json(containers.read_comment(tmp_path / 'b.mp4'))
    assert (made.codec, made.crf) == ('hevc10', 8)
    frames = decoding.decode(tmp_path / 'b.mp4').frames
    assert sample_videos.psnr(frames, decoding.decode(tmp_path / 'a.mp4').frames.repeat(2, 1).repeat(2, 2)) > 38


@pytest.mark.parametrize(
    ('name', 'output', 'words'),
    [
        ('a.mp4', 'b.png', 'must end in .mp4, or name images such as frames_%05d.png'),
        ('a.mp4', 'b', 'must end in .mp4'),
        ('a.png', 'b', 'must end in .png'),
        ('f_%02d.png', 'b.png', 'must end in .mp4, name a folder, or images'),
        ('a.mp4', 'a.mp4', 'is the input'),
        ('g_%02d.png', 'b.mp4', 'no such images'),
        ('g_%02d.tif', 'b.mp4', 'must end in .png'),
    ],
)
def test_outputs_that_do_not_fit(name, output, words, run, calls, tmp_path, capsys):
    encoding.encode(tmp_path / 'a.mp4', video(), 24)
    write_images(tmp_path, video(2), 'f_{:02d}.png')
    image_files.write_image(tmp_path / 'a.png', video(1)[0])
    before = written(tmp_path)
    assert command(run, tmp_path / name, tmp_path / output) == 2
    assert words in capsys.readouterr().err and written(tmp_path) == before


def test_metadata_of_earlier_versions_can_be_read():
    made = metadata.GenerationMetadata(
        '1', metadata.WeightsOrigin(), clip=metadata.ClipMetadata('a.mp4', 9, 5, 'adaptive', None, True, 'crop')
    )
    values = json.loads(made.to_json())
    values['fv_jax']['clip'] = {'name': 'a.mp4', 'window': 9, 'overlap': 5}
    del values['fv_jax']['codec']
    found = metadata.from_json(json.dumps(values))
    assert found == dataclasses.replace(made, clip=metadata.ClipMetadata('a.mp4', 9, 5, fit=None))


def test_files_of_other_formats_are_named(folder, run, calls, tmp_path, capsys):
    (folder / 'photo.heic').write_bytes(b'none')
    assert command(run, folder, tmp_path / 'out') == 1
    assert written(tmp_path / 'out') == OUTPUTS
    out, err = capsys.readouterr()
    assert 'photo.heic: failed: heic is not among the formats that are read' in out and '1 of 6 clips failed' in err
    assert command(run, folder / 'photo.heic', tmp_path / 'photo.png') == 2
    assert 'photo.heic: heic is not among the formats that are read; convert it' in capsys.readouterr().err


def test_exported_file_is_a_checkpoint(run, tmp_path):
    """It samples what the run samples, but for its half precision."""
    encoding.encode(tmp_path / 'a.mp4', video(2), 24, crf=4)
    file = run.parent / 'stage2.safetensors'  # beside its VAE
    assert export.main(['--checkpoint', str(run), '--output', str(file)]) == 0
    for name, weights in (('run', run), ('file', file)):
        assert command(weights, tmp_path / 'a.mp4', tmp_path / f'{name}.mp4', '--crf=4') == 0
    one, other = (decoding.decode(tmp_path / f'{name}.mp4').frames for name in ('run', 'file'))
    assert one.std() > 5 and mean_difference(one, other) < 1
    assert command(file, tmp_path / 'a.mp4', tmp_path / 'c.mp4', '--step=3') == 2
