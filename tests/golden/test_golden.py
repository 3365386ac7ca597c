"""The golden values of `measure.py` hold on any machine and version, within rounding."""

import json
from pathlib import Path

import numpy as np

from tests.golden import measure

GOLDEN = json.loads(measure.GOLDEN.read_text())


def test_golden_steps_of_stage_2(tmp_path: Path) -> None:
    """Those of the others are compared where their runs are tested: tests/test_train.py, tests/e2e."""
    measure.assert_golden_steps('stage2', measure.training_steps('stage2', tmp_path / 'run'))


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
