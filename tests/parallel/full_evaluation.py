"""An evaluation over eight devices has the metrics and losses of one."""

import json
import subprocess
import sys

import pytest

from fv_jax import train
from tests import runs
from tests.sampling import tiny


def test_evaluation_over_eight_devices_equals_one(tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    assert train.main(runs.superres(tmp_path / 'run', tmp_path / 'vae.safetensors')) == 0
    flags = [f'--checkpoint={tmp_path}/run', '--num-clips=2', '--num-steps=1', '--vgg-frames=1']

    def evaluate(devices: int) -> dict:
        output = tmp_path / str(devices)
        command = [sys.executable, '-m', 'fv_jax.evaluate', *flags, f'--output={output}']
        subprocess.run(command, cwd=runs.ROOT, env=runs.environment(devices=devices), check=True)
        return json.loads((output / 'report.json').read_text())

    one, eight = evaluate(1), evaluate(8)
    for name, loss in one['losses'].items():
        assert eight['losses'][name] == pytest.approx(loss, rel=1e-4), name
    assert 'VAE round trip' in one['summary']
    for method, metrics in one['summary'].items():
        for name in metrics.keys() & {'psnr', 'lpips_alex', 'sharpness'}:
            value = eight['summary'][method][name]['mean']
            assert value == pytest.approx(metrics[name]['mean'], rel=1e-3), (method, name)
