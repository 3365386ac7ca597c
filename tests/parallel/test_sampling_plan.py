"""The programs of a plan are the programs that sampling runs, over eight devices."""

import dataclasses

import jax
import pytest

from fv_jax.api import STAGES, FlashVideo
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import FRAMES, Partitioner
from fv_jax.planning.sampled_stages import SampledPipeline, SampledStage
from fv_jax.planning.sampling_phases import sampling_phases
from fv_jax.sampling import programs
from fv_jax.stages import frozen_vae
from tests.sampling import tiny

ENHANCED = (64, 128)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pipeline')
    tiny.save_pipeline_and_vae(folder)
    return folder


@pytest.fixture
def lowered(monkeypatch):
    """The text of every program that sampling calls: steps, chunks of the VAE, resizing."""
    found = set()

    def record(module, name):
        function = getattr(module, name)

        def call(*arguments):
            found.add(function.lower(*arguments).as_text())
            return function(*arguments)

        call.lower, call.eval_shape = function.lower, function.eval_shape
        monkeypatch.setattr(module, name, call)

    for module, name in ((programs, '_advance'), (programs, '_resize'), (frozen_vae, '_run_chunk')):
        record(module, name)
    return found


def planned(fv: FlashVideo) -> set[str]:
    def stage(name, part, settings):
        return SampledStage(name, part.stage, settings, part.vae.config, tiny.TEXT, tiny.FRAMES)

    stages = stage(STAGES[0], fv.stage1, fv.preview_settings), stage(STAGES[1], fv.stage2, fv.enhance_settings)
    text_device = Partitioner(make_mesh(ParallelConfig(), jax.devices()[:1]), FRAMES)
    phases = sampling_phases(SampledPipeline(*stages, batch_size=2), fv.mesh, text_device)
    return {program.lower().as_text() for phase in phases for program in phase.programs}


@pytest.mark.parametrize('settings', [{}, {'width_slices': 2}, {'tile_size': (32, 64), 'tile_overlap': 16}], ids=str)
def test_planned_programs_are_those_of_sampling(saved, lowered, settings):
    fv = FlashVideo.from_checkpoint(saved)
    fv.enhance_settings = dataclasses.replace(fv.enhance_settings, size=ENHANCED, **settings)
    fv.enhance(fv.preview(['a red ball', 'a blue ball'], seed=1))
    texts = set(lowered)
    assert texts == planned(fv)
