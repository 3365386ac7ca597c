"""The GPU's benchmark at a small size, on the CPU."""

import importlib.util
import json

import pytest

from tests.benchmarks import gpu_speed


def test_benchmark_attention_step_and_sampler(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_speed, 'EXACT_TOKENS', 64)
    file = tmp_path / 'speed.json'
    flags = ['--tokens=64,100', '--size=9x32x48', '--config=configs/stage2.py:smoke', '--rounds=2', f'--json={file}']
    assert gpu_speed.main(flags) == 0
    found = json.loads(file.read_text())
    assert found['command'].endswith(f'--json={file}') and found['device'] == 'cpu'
    has_torch = importlib.util.find_spec('torch') is not None
    assert (found['versions']['torch'] == 'not installed') != has_torch
    kernels = {'fv_jax', 'torch flash'} if has_torch else {'fv_jax'}
    for row, tokens in zip(found['attention'], (64, 100), strict=True):
        assert row['tokens'] == tokens and set(row) - {'tokens'} == kernels
        assert row['fv_jax']['forward'] > 0 and row['fv_jax']['both'] > 0
    errors = found['exactness']['fv_jax']
    assert 0 < errors['output'] < 0.01 and 0 < errors['gradients'] < 0.01  # bfloat16 keeps 8 bits
    networks = found['networks']
    for name in ('training step', 'sampler'):
        figures = networks[name]
        # 3 x 2 x 3 video tokens.
        assert figures['tokens_per_s'] == pytest.approx(18 / figures['seconds'])
        assert figures['tflops_per_chip'] > 0 and 'mfu' not in figures
    assert '64 tokens, fv_jax: forward' in capsys.readouterr().out


def test_benchmark_reports_a_kernel_that_fails(monkeypatch):
    def refuse():
        raise RuntimeError('No available kernel. Aborting execution.\nmore')

    monkeypatch.setattr(gpu_speed, '_jax_attention', lambda kernel, qkv: (refuse, refuse, lambda x: x))
    row = gpu_speed._attention(16, (1, 16), 1)
    assert row['fv_jax'] == dict.fromkeys(('forward', 'both'), 'refused: No available kernel. Aborting execution. more')
