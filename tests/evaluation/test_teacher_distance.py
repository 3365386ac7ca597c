"""The distance of a flow map to its teacher: none of an exact one, and faults that the collapse monitor reports."""

import jax
import numpy as np
import pytest

from fv_jax.evaluation.teacher_distance import TeacherDistance
from fv_jax.training.heldout import HeldoutBatch
from fv_jax.training.monitoring.collapse import CollapseMonitor, CollapseMonitorConfig
from tests.stages import gaussian_flow


class Pixels:
    """A fake VAE: of both channels of the latents, one gray level."""

    def decode(self, z_BFHWC):
        return z_BFHWC.mean(axis=-1, keepdims=True).repeat(3, axis=-1) / 10


def diagnose(change, **fields):
    """Diagnostics of the exact flow map after `change`."""
    stage = gaussian_flow.make_stage(teacher_guidance_scale=3.0, num_steps=1, **fields)
    rng = np.random.default_rng(0)
    z_high, z_low = rng.standard_normal((2, 2, 3, 12, 12, 2)).astype(np.float32)
    batch = {'z_high_BFHWC': z_high, 'z_low_BFHWC': 0 * z_low, 'text_BLD': np.ones((2, 1, 1), np.float32)}

    def make_model(params):
        student = gaussian_flow.exact_student(stage)
        change(student)
        return student

    where = {'vae': Pixels(), 'context': gaussian_flow.CONTEXT, 'truths': [None], 'key': jax.random.key(0)}
    batches = [HeldoutBatch(batch, np.arange(2))]
    return TeacherDistance(stage=stage, make_model=make_model, batches=batches, **where)({})


def violations(metrics):
    lines = CollapseMonitor(CollapseMonitorConfig(after_step=0)).check(0, metrics)
    return {line.split()[0] for line in lines if line.startswith('energy_')}


def test_exact_flow_map_is_its_teacher():
    found = diagnose(lambda student: None)
    for n in (1, 2, 5):
        assert found.metrics[f'psnr_teacher_{n}'] > 60
        np.testing.assert_allclose([found.metrics[f'{name}_{n}'] for name in ('energy', 'flicker')], 1, atol=1e-2)
    assert {f'energy_t/{k}' for k in range(1, 6)} <= found.metrics.keys() and 'energy_t/6' not in found.metrics
    assert not violations(found.metrics)
    assert [name for name, _ in found.videos] == ['heldout_0', 'heldout_1']
    assert found.videos[0][1].shape == (3, 12, 6 * 12, 3)  # degraded, three samples, teacher, truth


def test_wrong_long_interval_is_found_where_it_is():
    def move(student):
        student.bias[...] = student.bias[...].at[0, 5].add(2.0)

    found = diagnose(move).metrics
    assert found['psnr_teacher_1'] < 35 < 60 < found['psnr_teacher_2']
    assert found['energy_1'] != pytest.approx(1, abs=0.05) and found['energy_2'] == pytest.approx(1, abs=0.01)


def test_collapse_monitor_reports_every_energy():
    found = diagnose(lambda student: None).metrics | {'energy_1': 0.3, 'energy_t/2': 1.9}
    assert violations(found) == {'energy_1', 'energy_t/2'}


def test_counts_are_those_of_the_knots():
    assert len(diagnose(lambda student: None, num_knots=2).videos[0][1][0, 0]) == 5 * 12
