"""The golden values of `measure.py` hold on any machine and version, within rounding."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden import measure

GOLDEN = json.loads(measure.GOLDEN.read_text())
ADVICE = (
    'If this change is meant to compute something else, record it by `python -m tests.golden.measure --record` and '
    'state it in the commit; else find what changed (bit for bit on one machine: --output before, --compare after)'
)


@pytest.mark.parametrize('config', measure.CONFIGS)
def test_golden_steps(config: str, tmp_path: Path) -> None:
    """Loss and gradient norm of the first steps: 1e-5 relative (jax 0.10 and 0.12 agree to 1e-6)."""
    found = measure.training_steps(config, tmp_path / 'run')
    assert len(found) == measure.NUM_STEPS
    for step, (golden, now) in enumerate(zip(GOLDEN['steps'][config], found, strict=True), 1):
        for name in golden:
            expected, value = float.fromhex(golden[name]), float.fromhex(now[name])
            assert abs(value / expected - 1) < 1e-5, (
                f'{config} step {step}: {name} {value}, golden {expected}. {ADVICE}'
            )


def test_golden_samples() -> None:
    """Mean and standard deviation of every channel of what the shipped weights make: 1e-3 of the channel's spread."""
    for name, now in measure.samples().items():
        golden = GOLDEN['samples'][name]
        assert now['shape'] == golden['shape'], f'{name}. {ADVICE}'
        for key in ('mean', 'std'):
            error = np.abs(np.subtract(now[key], golden[key])) / np.asarray(golden['std'])
            assert error.max() < 1e-3, f'{name}: {key} {now[key]}, golden {golden[key]}. {ADVICE}'


def test_golden_parameters() -> None:
    """Paths and shapes of every parameter of the official networks: fingerprints and checkpoints depend on them."""
    assert measure.parameter_lines() == measure.PARAMETERS.read_text().splitlines(), ADVICE
