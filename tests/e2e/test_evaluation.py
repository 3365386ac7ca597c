"""A run, measured."""

import json

import numpy as np
import pytest
from PIL import Image

from fv_jax import evaluate, train
from fv_jax.data.video import video_io
from tests import runs
from tests.sampling import tiny


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """A run of stage 2."""
    folder = tmp_path_factory.mktemp('whole')
    tiny.save_vae(folder / 'vae.safetensors')
    assert train.main(runs.superres(folder / 'run', folder / 'vae.safetensors')) == 0
    return folder / 'run'


def test_evaluate_a_run(uninterrupted, tmp_path, capsys):
    output = tmp_path / 'report'
    assert evaluate.main([f'--checkpoint={uninterrupted}', f'--output={output}', '--num-clips=2', '--num-steps=1']) == 0
    out, err = capsys.readouterr()
    assert err == '' and 'PSNR  ' in out and str(output) in out
    assert {p.name for p in output.iterdir()} == {
        'report.json', 'contact_sheet.png', 'small.mp4', 'clip_0.mp4', 'clip_1.mp4'
    }  # fmt: skip
    report = json.loads((output / 'report.json').read_text())
    assert report['checkpoint_step'] == 4 and report['nfe'] == 1 and len(report['clips']) == 2
    assert [clip['factor'] for clip in report['clips']] == [4, 8]
    for name, value in report['mean'].items():
        assert np.isfinite(value)
        assert value == pytest.approx(np.mean([clip[name] for clip in report['clips']]))
    losses = report['flow_matching_loss']
    assert losses['ratio'] == pytest.approx(losses['model'] / losses['linear_3x3x3']) and losses['model'] > 0
    for i in (0, 1):
        video = video_io.probe(output / f'clip_{i}.mp4')
        assert video.frames == 9 and video.width == 2 * 48
    assert Image.open(output / 'contact_sheet.png').width >= 4 * 48
    ranges = f'--degradation-config={runs.ROOT / "configs" / "degradations.py"}'
    flags = [f'--checkpoint={uninterrupted}', f'--output={tmp_path / "strong"}', '--num-clips=2', '--num-steps=1']
    assert evaluate.main([*flags, ranges]) == 0
    strong = json.loads((tmp_path / 'strong' / 'report.json').read_text())
    assert strong['mean']['psnr_bilinear'] < report['mean']['psnr_bilinear']
    assert evaluate.main([*flags, f'{ranges}:weak']) == 2
    assert 'has no strong degradations' in capsys.readouterr().err


def test_evaluate_refuses_invalid_runs(uninterrupted, tmp_path, capsys):
    for arguments, code, words in (
        ([f'--checkpoint={tmp_path}', f'--output={tmp_path}/out'], 1, 'contains no checkpoints'),
        (
            [f'--checkpoint={uninterrupted}', f'--output={tmp_path}/out', '--num-clips=0'],
            2,
            '--num-clips=0: must be at least 1',
        ),
        (
            [f'--checkpoint={uninterrupted}', f'--output={tmp_path}/out', '--num-steps=0'],
            2,
            '--num-steps=0: must be at least 1',
        ),
        ([f'--checkpoint={uninterrupted}', '--outptu=x', f'--output={tmp_path}/out'], 2, 'did you mean --output'),
    ):
        assert evaluate.main(arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('evaluate: ') and words in line
    assert not (tmp_path / 'out').exists()
