"""Methods on clips: values, files, statistics, and the report that they become."""

import dataclasses
import json

import numpy as np
import pytest

from fv_jax.data.transforms import to_float
from fv_jax.data.video import decoding
from fv_jax.evaluation import comparison, full_reference, i3d, methods
from fv_jax.evaluation.clip_sources import ClipError, EvaluationClip
from fv_jax.evaluation.comparison import Comparison
from fv_jax.evaluation.methods import Method
from fv_jax.evaluation.statistics import paired_difference
from fv_jax.evaluation.suite import Metric, Suite

NAMES = ('a', 'b', 'c')
VALUES = {'nothing': np.nan, 'perfect': np.inf}
DETAILS = {'checkpoint': 'run', 'step': 3, 'num_steps': 2, 'nfe': 2, 'settings': {'num_steps': 2}}


def make_clip(name, truth=True):
    rng = np.random.default_rng(NAMES.index(name))
    video = rng.integers(60, 200, (5, 32, 48, 3), np.uint8)
    return EvaluationClip(name, video[:, ::4, ::4], (32, 48), 12, 0, video if truth else None)


def add(value):
    return lambda clip: methods.baselines()[0].make(clip) // 2 + np.uint8(value)


def alone(name, per_frame):
    return Metric(name, name, 'higher', per_frame, 2, needs_truth=False, uses_truth=False)


def psnr_suite():
    psnr = Metric('psnr', 'PSNR', 'higher', full_reference.psnr, 2, 'dB')
    return Suite([psnr, alone('contrast', lambda video: video.std((1, 2, 3)))])


def compare(tmp_path, *, truth=True, names=NAMES, suite=None):
    compared = [
        *methods.baselines(),
        Method('2 steps', 'network', add(60), DETAILS),
        Method('4 steps', 'network', add(40), DETAILS | {'num_steps': 4}),
        methods.ground_truth(),
    ]
    run = Comparison(compared, suite or psnr_suite(), tmp_path)
    run.run([lambda name=name: make_clip(name, truth) for name in names])
    return run, run.write('a title', {'seed': 0}, None)


def test_values_statistics_and_files(tmp_path):
    _, data = compare(tmp_path)
    values = [clip['values']['2 steps']['psnr'] for clip in data['clips']]
    videos = add(60)(make_clip('b')), make_clip('b').truth
    expected = full_reference.psnr(*map(to_float, videos))
    assert values[1] == pytest.approx(np.mean(expected), rel=1e-5)
    assert data['summary']['2 steps']['psnr']['mean'] == pytest.approx(np.mean(values))
    pairs = {(p['method'], p['against'], p['metric']): p for p in data['paired']}
    pair = pairs['2 steps', 'bilinear', 'psnr']
    against = paired_difference(values, [clip['values']['bilinear']['psnr'] for clip in data['clips']])
    assert (pair['difference'], pair['low'], pair['high']) == pytest.approx(against[:3])
    assert {(p['method'], p['against']) for p in data['paired']} == {
        ('2 steps', 'bilinear'), ('4 steps', 'bilinear'), ('4 steps', '2 steps')
    }  # fmt: skip
    truth = data['clips'][0]['values']['ground truth']
    assert truth['psnr'] is None and truth['contrast'] > 0
    assert json.loads((tmp_path / 'report.json').read_text()) == data
    for name in ('2_steps', 'bilinear', 'ground_truth'):
        info = decoding.probe(tmp_path / 'clips' / 'b' / f'{name}.mp4')
        assert (info.frames, info.height, info.width, info.fps) == (5, 32, 48, 12)
    assert decoding.probe(tmp_path / 'clips' / 'b' / 'input.mp4').width == 12
    assert '2 steps' in (tmp_path / 'report.md').read_text() and '<html' in (tmp_path / 'report.html').read_text()
    assert data['not_computed']['FVD'] == 'needs 64 clips or more; there are 3'


def test_without_ground_truth(tmp_path):
    _, data = compare(tmp_path, truth=False, names=('a',))
    (clip,) = data['clips']
    assert 'ground truth' not in clip['values'] and clip['values']['2 steps']['psnr'] is None
    assert clip['values']['2 steps']['contrast'] > 0
    assert 'psnr' not in data['summary']['2 steps']
    assert {p['metric'] for p in data['paired']} == {'contrast'}


def test_infinite_and_undefined_values_are_valid_json(tmp_path):
    nothing, perfect = (alone(name, lambda v, value=value: np.full(len(v), value)) for name, value in VALUES.items())
    compare(tmp_path, names=('a',), suite=Suite([nothing, perfect]))
    data = json.loads((tmp_path / 'report.json').read_text(), parse_constant=pytest.fail)
    assert data['clips'][0]['values']['bilinear'] == {'nothing': None, 'perfect': 'inf'}


def test_fvd_of_enough_clips(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(i3d, 'MIN_CLIPS', 3)
    monkeypatch.setattr(comparison.i3d, 'load_i3d', dict)
    monkeypatch.setattr(comparison.i3d, 'logits', lambda video, variables: rng.normal(video.mean(), 1, 4))
    _, data = compare(tmp_path)
    found = data['sets']['bilinear']['fvd']
    assert found['clips'] == 3 and found['value'] >= 0 and data['metrics']['fvd']['direction'] == 'lower'
    assert 'ground truth' not in data['sets'] and any('i3d' in file for file in data['weights'])


def fail(message):
    raise ClipError(message)


def test_clips_that_cannot_be_read_are_skipped_and_named(tmp_path, log_lines):
    """Also results of another enhancer, of which the other methods are still measured."""

    def load(name, theirs):
        return dataclasses.replace(make_clip(name), results={'theirs': theirs})

    clips = [
        lambda: fail('folder/a.mp4: damaged at frame 3'),
        lambda: load('b', lambda: fail('theirs/b.mp4: no such file')),
        lambda: load('c', lambda: make_clip('a').truth),
    ]
    run = Comparison([*methods.baselines(), methods.result('theirs')], psnr_suite(), tmp_path)
    run.run(clips)
    data = run.write('a title', {}, None)
    assert run.skipped == ['folder/a.mp4: damaged at frame 3', 'theirs/b.mp4: no such file']
    assert [(clip['name'], sorted(clip['values'])) for clip in data['clips']] == [
        ('b', ['bicubic', 'bilinear']), ('c', ['bicubic', 'bilinear', 'theirs'])
    ]  # fmt: skip
    assert data['not_computed']['folder/a.mp4'] == 'damaged at frame 3'
    assert 'theirs/b.mp4' in (tmp_path / 'report.md').read_text()
    assert 'skipped: folder/a.mp4: damaged at frame 3' in log_lines
    with pytest.raises(ValueError, match=r'none of 1 clip\(s\) can be used: folder/a.mp4: damaged'):
        Comparison(methods.baselines(), psnr_suite(), tmp_path).run(clips[:1])
