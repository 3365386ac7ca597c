"""The command that shows degradations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fv_jax import degrade
from fv_jax.data.video import encoding
from tests.data import sample_videos
from tests.sampling import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    encoding.encode(tmp_path / 'video.mp4', sample_videos.pattern(4, 64, 96), 24)
    return [
        f'--config={ROOT / "configs" / "degradations.py"}',
        f'--input={tmp_path / "video.mp4"}',
        f'--output={tmp_path / "sheet.png"}',
        '--height=48',
        '--width=64',
    ]


def test_degrade_writes_a_sheet(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert degrade.main([*arguments, '--num-samples=2', '--frames=3']) == 0
    output = capsys.readouterr().out.splitlines()
    assert len(output) == 7 and output[0].startswith('sample 0, strong 0: blur ') and 'bpp' in output[0]
    first = np.asarray(Image.open(tmp_path / 'sheet.png'))
    assert first.shape[1] > 5 * 64 and first.shape[0] > 4 * 48
    assert degrade.main([*arguments, '--num-samples=2', '--frames=3']) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'sheet.png')), first)
    assert degrade.main([*arguments, '--num-samples=2', '--frames=3', '--seed=1']) == 0
    assert (np.asarray(Image.open(tmp_path / 'sheet.png')) != first).any()


def test_degrade_shows_what_looks_like_previews(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By a small stage 1; one frame is neither changed by motion nor given to the model."""
    tiny.save_pipeline_and_vae(tmp_path)
    arguments[0] += ':like_previews'
    arguments += [f'--config.model_guided.checkpoint={tmp_path / "stage1"}', '--num-samples=1', '--height=64']
    encoding.encode(tmp_path / 'video.mp4', sample_videos.pattern(9, 64, 96), 24)
    levels = '--config.model_guided.noise_levels=(0.1, 0.9)'
    assert degrade.main([*arguments, '--width=128', levels]) == 0
    out = capsys.readouterr().out
    assert 'sample 0, flow-based: blending 0.' in out and 'sample 0, model-guided: noise level 0.' in out
    assert 'model-guided degradations: ' in out and 'without text and guidance' in out
    assert np.asarray(Image.open(tmp_path / 'sheet.png')).shape[1] > 7 * 128
    assert degrade.main([*arguments, '--width=128', '--frames=1']) == 0
    assert 'model-guided' not in capsys.readouterr().out
    assert degrade.main([*arguments, '--config.model_guided.noise_levels=(0.01, 0.02)']) == 2
    assert 'degrade: --config.model_guided.noise_levels=0.01, 0.02: no state' in capsys.readouterr().err


def test_degrade_of_an_image_and_without_strong_degradations(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert degrade.main([*arguments, '--frames=1', '--num-samples=1']) == 0
    assert 'bpp' not in capsys.readouterr().out
    arguments[0] += ':weak'
    assert degrade.main([*arguments, '--num-samples=1']) == 0
    assert capsys.readouterr().out.count('strong') == 0


@pytest.mark.parametrize(
    ('more', 'code', 'words'),
    [
        ('--num-samples=0', 2, '--num-samples=0: must be at least 1'),
        ('--output=sheet.jpg', 2, 'must end in .png'),
        ('--input=none.mp4', 1, 'none.mp4: no such file'),
        ('--config.strong.sinc.probability=2.0', 2, 'config.strong.sinc.probability=2.0: must be from 0 to 1'),
        ('--config.strang=1', 2, "did you mean 'strong'"),
    ],
)
def test_degrade_usage_errors_are_one_line(
    arguments: list[str], more: str, code: int, words: str, capsys: pytest.CaptureFixture
) -> None:
    assert degrade.main([*arguments, more]) == code
    assert words in capsys.readouterr().err


def test_degrade_of_a_file_that_cannot_be_read_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'odd.mp4').write_bytes(b'')
    assert degrade.main([*arguments, f'--input={tmp_path / "odd.mp4"}']) == 1
    assert capsys.readouterr().err.startswith(f'degrade: {tmp_path}/odd.mp4: not a video that can be read')

    def pixels(*_) -> None:
        raise MemoryError('Unable to allocate 12.4 GiB')

    monkeypatch.setattr('fv_jax.data.video.frame.Frame.pixels', pixels)
    assert degrade.main(arguments) == 1
    err = capsys.readouterr().err
    assert err == f'degrade: {tmp_path}/video.mp4: MemoryError: Unable to allocate 12.4 GiB\n'
