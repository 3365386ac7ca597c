"""The inspecting command: what a run, an exported file and official weights hold, without reading an array."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from fv_jax import inspect, weights
from fv_jax.checkpoints import streaming
from tests import runs
from tests.sampling import tiny

FIXTURES = runs.ROOT / 'tests' / 'parity' / 'official_dev'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    tiny.save_vae(folder / 'vae.safetensors')
    tiny.save_run(folder / 'stage2', tiny.stage_config(folder / 'vae.safetensors'))
    rows = [
        {'step': 6, 'loss': 0.75},
        {'step': 7, 'loss': 0.5},
        {'step': 7, 'eval/loss': 0.25},
        {'step': 8, 'loss': 9.0},
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / 'stage2' / 'metrics.jsonl').write_text(text + '{"step": 9, "lo')
    return folder / 'stage2'


def inspect_output(capsys, *arguments):
    assert inspect.main([*map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ''
    return out


def test_inspect_a_run(run, capsys):
    out = inspect_output(capsys, run, '--verify')
    assert f'{run}: stage superres, step 7 of 7' in out and 'checksums: intact' in out
    assert f'trained with the VAE {weights.encoder_fingerprint(str(run.parent / "vae.safetensors"))}' in out
    assert 'training at step 7: loss 0.5' in out and 'eval at step 7: loss 0.25' in out
    params = {k: v for k, v in runs.arrays(run, 7).items() if k.startswith('params')}
    (line,) = [line for line in out.splitlines() if line.startswith('blocks.attention.qkv.kernel ')]
    shape, dtype, axes, kind, size = line.split()[1:]
    assert (shape, dtype, kind, size) == ('1x32x3x32', 'float32', 'trainable', f'{32 * 96:,}')
    assert axes.split(',')[:2] == ['layers', 'embed'] and axes.endswith('heads') and len(axes.split(',')) == 4
    elements, trainable = (sum(v.size for k, v in params.items() if part in k) for part in ('', "['trainable']"))
    assert f'{len(params)} parameters, {elements:,} elements, {trainable:,} of them trainable' in out
    summed = inspect_output(capsys, run, '--depth', 1).splitlines()
    assert any(line.split()[:1] == ['blocks'] for line in summed) and not any('qkv' in line for line in summed)


def test_inspect_reads_no_array(run, capsys, monkeypatch):
    monkeypatch.setattr(jax, 'device_put', lambda *_, **__: pytest.fail('an array was made'))
    monkeypatch.setattr(np, 'frombuffer', lambda *_, **__: pytest.fail('an array was read'))
    inspect_output(capsys, run)


def test_inspect_weights(run, capsys):
    out = inspect_output(capsys, run.parent / 'vae.safetensors')
    assert 'an exported file, vae' in out and 'base_channels = 8' in out and 'float16' in out and 'trainable' not in out
    out = inspect_output(capsys, FIXTURES / 'stage1.pt', '--depth', 2)
    assert 'official layout, DiT' in out and 'num_layers = ' in out
    official = weights.load_official(FIXTURES / 'stage1.pt')
    count = sum(leaf.size for leaf in jax.tree.leaves(official))
    assert f'{count:,} elements' in out


def test_inspect_refuses_other_files(run, tmp_path, capsys):
    (tmp_path / 'text.safetensors').write_text('no weights')
    (tmp_path / 'empty').mkdir()
    for arguments, code, words in (
        ([tmp_path / 'none'], 1, 'does not exist'),
        ([tmp_path / 'empty'], 1, 'contains no checkpoints'),
        ([tmp_path / 'text.safetensors'], 1, 'text.safetensors'),
        ([run, '--step=3'], 1, 'has no step 3; it has 7'),
        ([run, '--depth=0'], 2, '--depth=0'),
        ([run, '--verfiy'], 2, 'did you mean --verify'),
        ([run.parent / 'vae.safetensors', '--step=3'], 2, 'need a folder with checkpoints'),
        ([], 2, 'required'),
    ):
        assert inspect.main([*map(str, arguments)]) == code, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('inspect: ') and words in line


def test_inspect_verify_reports_damage(run, capsys):
    path = run / 'checkpoints' / '7' / 'meta' / 'metadata'
    path.write_text(path.read_text() + ' ')
    assert inspect.main([str(run), '--verify']) == 1
    out, err = capsys.readouterr()
    assert 'checksums: DAMAGED: meta/metadata has' in out and 'is damaged' in err and 'qkv' in out


def test_inspect_runs_without_stage_or_metrics(tmp_path, capsys):
    """A converted text encoder; run.json and metrics.jsonl of somebody else."""
    array = streaming.LazyArray((3,), np.dtype('float32'), lambda: np.zeros(3, np.float32))
    streaming.save(tmp_path, 0, {'frozen': {'x': array}}, {'t5': {}})
    (tmp_path / 'metrics.jsonl').write_text('3\n[]\n{"loss": 1}\n{"step": "x"}\n')
    for text in ('[]', '[3]', '{', '[' * 100_000):
        (tmp_path / 'run.json').write_text(text)
        out = inspect_output(capsys, tmp_path)
        assert 't5, step 0' in out and 'the launch record cannot be read' in out
    assert 'x ' in out and '1 parameters, 3 elements' in out


def test_inspect_into_a_closed_pipe_ends_silently(run):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, '-m', 'fv_jax.inspect', str(run)]
    done = subprocess.run(command, cwd=runs.ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b'')
