"""Evaluation during training: the same figures on any mesh, for any number of held-out clips."""

import jax
import numpy as np
import pytest

from fv_jax.core import axes
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import arrays
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.training import state
from fv_jax.training.heldout import HeldoutBatch, heldout_indices
from fv_jax.training.monitoring.collapse import CollapseMonitorConfig
from fv_jax.training.optimizer import OptimConfig
from fv_jax.training.progress import Progress
from fv_jax.training.validation import Validation, Validator
from tests.training import toy

CLIPS = {name: np.concatenate([toy.batch(0)[name], toy.batch(1)[name]]) for name in toy.batch()}
STAGE = toy.Toy(noise=2.0)


class Rows:
    """A fake metric writer."""

    def __init__(self):
        self.rows = []

    def scalars(self, step, values, line):
        self.rows.append(values)

    def video(self, step, name, frames, fps):
        pass


def evaluate(num_clips, partitioner=None):
    network, start, _ = toy.new(STAGE, OptimConfig(ema_decay=0.0))
    batches = []
    for clips in heldout_indices(num_clips, 1 if partitioner is None else partitioner.num_shards(axes.ACT_BATCH)):
        batch = STAGE.encode({name: value[clips] for name, value in CLIPS.items()})
        if partitioner is not None:
            batch = arrays.to_global(batch, partitioner, OFFICIAL.latent_spec)
        batches.append(HeldoutBatch(batch, clips))
    writer = Rows()
    validation = Validation(batches, lambda samples: [])
    made = STAGE, network, toy.CONTEXT, jax.random.key(0), writer, CollapseMonitorConfig(), Progress()
    Validator(validation, *made).evaluate(1, state.inference_params(start), lambda: None)
    return writer.rows[0]


@pytest.mark.parametrize('num_clips', [1, 3, 4, 7])
@pytest.mark.parametrize('parallel', [{'data': 8}, {'data': 2, 'fsdp': 2, 'context': 2}], ids=str)
def test_held_out_loss_is_that_of_one_device(num_clips, parallel):
    expected = evaluate(num_clips)
    found = evaluate(num_clips, Partitioner(make_mesh(ParallelConfig(**parallel)), 'fsdp'))
    assert found.keys() == expected.keys() and {'eval/loss', 'eval/noise'} <= found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
