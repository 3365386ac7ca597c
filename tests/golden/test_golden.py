"""The golden values of `measure.py` hold on any machine and version, within rounding."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden import measure

GOLDEN = json.loads(measure.GOLDEN.read_text())


@pytest.mark.parametrize('config', ['stage1', 'stage2'])
def test_golden_steps(config: str, tmp_path: Path) -> None:
    """Those of the VAE are compared in tests/e2e, where its step is compiled anyway."""
    measure.assert_golden_steps(config, measure.training_steps(config, tmp_path / 'run'))


def test_golden_samples() -> None:
    """Mean and standard deviation of every channel of what the shipped weights make: 1e-3 of the channel's spread."""
    for name, now in measure.samples().items():
        golden = GOLDEN['samples'][name]
        assert now['shape'] == golden['shape'], f'{name}. {measure.ADVICE}'
        for key in ('mean', 'std'):
            error = np.abs(np.subtract(now[key], golden[key])) / np.asarray(golden['std'])
            assert error.max() < 1e-3, f'{name}: {key} {now[key]}, golden {golden[key]}. {measure.ADVICE}'


def test_golden_parameters() -> None:
    """Paths and shapes of every parameter of the official networks: fingerprints and checkpoints depend on them."""
    assert measure.parameter_lines() == measure.PARAMETERS.read_text().splitlines(), measure.ADVICE
