"""A run, measured by the command: on its held-out clips, on folders, and what the command refuses."""

import json
import shutil

import numpy as np
import pytest

from fv_jax import evaluate, train
from fv_jax.data.video import encoding
from tests import runs
from tests.sampling import tiny


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """A run of stage 2."""
    folder = tmp_path_factory.mktemp('whole')
    tiny.save_vae(folder / 'vae.safetensors')
    assert train.main(runs.superres(folder / 'run', folder / 'vae.safetensors')) == 0
    return folder / 'run'


def run(*arguments):
    return evaluate.main([*map(str, arguments), '--num-steps=1', '--vgg-frames=1'])


def read(output):
    return json.loads((output / 'report.json').read_text())


def write_video(path, height, width, frames=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x, f = np.ogrid[:height, :width, :frames]
    wave = 127 + 100 * np.sin(y / 3 + f) * np.cos(x / 4)
    encoding.encode(path, np.repeat(np.moveaxis(wave, 2, 0)[..., None], 3, axis=-1).astype(np.uint8), 12)


def test_evaluate_a_run(uninterrupted, tmp_path, capsys):
    output = tmp_path / 'report'
    flags = f'--checkpoint={uninterrupted}', '--num-clips=2'
    assert run(*flags, f'--output={output}', '--compare', 'shift=1.5', f'{uninterrupted},num_steps=2') == 0
    out, err = capsys.readouterr()
    assert err == '' and 'PSNR ↑' in out and str(output) in out
    assert {p.name for p in output.iterdir()} >= {'report.json', 'report.md', 'report.html', 'clips'}
    report = read(output)
    names = [method['name'] for method in report['methods']]
    networks = ['1 step', '4 steps, shift=1.5', '2 steps']
    assert names == ['bilinear', 'bicubic', 'VAE round trip', *networks, 'ground truth']
    assert [method['nfe'] for method in report['methods'] if method['kind'] == 'network'] == [1, 4, 2]
    assert [clip['input_size'] for clip in report['clips']] == [[8, 12], [4, 6]]  # 4 and 8 times smaller
    for name in names[:-1]:
        assert np.isfinite(report['summary'][name]['psnr']['mean']), name
    files = {path.name for path in (output / 'clips' / 'clip 1').iterdir()}
    assert files >= {'input.mp4', 'bilinear.mp4', 'VAE_round_trip.mp4', '4_steps_shift=1.5.mp4', 'strip.png'}
    losses = report['losses']
    assert losses['ratio'] == pytest.approx(losses['model'] / losses['linear_3x3x3']) and losses['model'] > 0
    strong = f'--degradation-config={runs.ROOT / "configs" / "degradations.py"}'
    assert run(*flags, f'--output={tmp_path / "strong"}', strong) == 0
    weak, strong = (report['summary']['bilinear']['psnr']['mean'] for report in (report, read(tmp_path / 'strong')))
    assert strong < weak
    assert run(*flags[:1], '--num-clips=1', '--heldout=sprites', f'--output={tmp_path / "other"}') == 0
    other = read(tmp_path / 'other')
    assert other['losses'] is None and other['summary']['bilinear']['psnr'] != report['summary']['bilinear']['psnr']


def test_evaluate_folders(uninterrupted, tmp_path):
    for name in ('GT', 'Other'):
        write_video(tmp_path / 'pairs' / name / 'a.mp4', 64, 96)
    write_video(tmp_path / 'pairs' / 'LQ' / 'a.mp4', 16, 24)
    own = tmp_path / 'metrics' / 'own.py'
    own.parent.mkdir()
    own.write_text("DIRECTION = 'higher'\ndef score(frames): return len(frames)")
    assert run(f'--pairs={tmp_path}/pairs', f'--output={tmp_path}/out', f'--metrics-folder={own.parent}') == 0
    report = read(tmp_path / 'out')
    assert [method['name'] for method in report['methods']] == ['bilinear', 'bicubic', 'Other', 'ground truth']
    values = report['clips'][0]['values']
    assert values['Other']['psnr'] == 'inf' and values['bilinear']['own'] == 5
    shutil.rmtree(tmp_path / 'pairs' / 'Other')
    flags = f'--checkpoint={uninterrupted}', f'--output={tmp_path}/out', '--overwrite'
    assert run(*flags, f'--ground-truth={tmp_path}/pairs/GT', '--max-frames=3') == 0
    report = read(tmp_path / 'out')
    assert report['clips'][0]['frames'] == 3 and report['losses'] is None
    assert run(*flags, f'--videos={tmp_path}/pairs/LQ', '--scale=2') == 0
    (clip,) = read(tmp_path / 'out')['clips']
    assert clip['size'] == [32, 48] and 'ground truth' not in clip['values']
    assert clip['values']['1 step']['psnr'] is None and clip['values']['1 step']['sharpness'] > 0


def test_evaluate_refuses_invalid_runs(uninterrupted, tmp_path, capsys):
    checkpoint, output = f'--checkpoint={uninterrupted}', f'--output={tmp_path}/out'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'a').touch()
    for arguments, code, words in (
        ([f'--checkpoint={tmp_path}/empty', output], 1, 'contains no checkpoints'),
        ([f'--checkpoint={tmp_path}/none', output], 1, 'none: does not exist'),
        ([output], 2, '--checkpoint: required'),
        ([checkpoint, f'--output={tmp_path}/full'], 2, 'is not empty'),
        ([checkpoint, output, '--num-clips=0'], 2, '--num-clips=0: must be at least 1'),
        ([checkpoint, output, '--num-steps=0'], 2, '--num-steps=0: give numbers of at least 1'),
        ([checkpoint, output, '--scale=nan'], 2, '--scale=nan: must be at least 1'),
        ([checkpoint, output, '--compare', 'steps=2'], 2, "unknown field 'steps'"),
        ([checkpoint, output, '--compare', 'sampler=dpm'], 2, 'sampler'),
        ([checkpoint, output, '--outptu=x'], 2, 'did you mean --output'),
        ([checkpoint, output, '--parallel.context=3'], 2, 'parallel: context 3 does not divide'),
        ([checkpoint, output, '--parallel.contxt=1'], 2, "did you mean 'context'"),
        ([checkpoint, output, f'--pairs={tmp_path}/empty'], 2, 'GT: no such folder'),
        ([checkpoint, output, f'--videos={tmp_path}/empty'], 2, 'holds no videos'),
        ([checkpoint, output, f'--metrics-folder={tmp_path}/empty'], 2, 'holds no metrics'),
        ([checkpoint, output, f'--degradation-config={runs.ROOT}/configs/degradations.py:weak'], 2, 'no strong'),
        ([checkpoint, output, '--degradation-config=degradations', f'--videos={tmp_path}'], 2, 'degraded already'),
    ):
        assert evaluate.main([*map(str, arguments)]) == code, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('evaluate: ') and words in line, line
    assert not (tmp_path / 'out').exists()
