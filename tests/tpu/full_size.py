"""Memory of the full-size configurations by the TPU compiler, on topologies that need not be attached.

    python -m tests.tpu.full_size            # all cases: 15 minutes on two cores
    python -m tests.tpu.full_size lora t5    # cases by name
    python -m pytest -m tpu tests/tpu/full_size.py -k lora    # the same as tests

Prints a line per case, and exits with 1 when one is above its limit. Memory is what is resident plus the transient
memory of the largest program. By libtpu 0.0.52, in GiB per chip:

    case           compiled  limit
    step_v5e8        12.08     15     VAE encode of 16 more frames; the step alone 9.9
    step_v6e4        19.44     28     the same; the step alone 18.9
    step_v5e4        14.88     15
    lora             12.35     15     latents encoded before training; with the VAE 12.96
    full             26.64     30     resident 11.04, transient 15.61
    sample1          12.56     30     VAE decode of 3 latent frames; a step of the sampler 11.28
    sample2          15.93     30     VAE encode of 17 frames; a step of the sampler 5.51
    sample1_one      11.51     15     a step alone
    sample2_one      14.26     15     VAE encode of 17 frames, in tiles of 400x528; a step of the sampler 8.23
    t5                8.88     15
    pod              11.07     95     communication takes 7 % of the executed time; 20 % allowed
"""

import dataclasses
import resource
import sys

import pytest

from fv_jax.api import STAGES
from fv_jax.core.command_line import override_settings, read_config
from fv_jax.core.hardware import GIB
from fv_jax.planning import planner, sampled_stages, slices
from fv_jax.planning.compiling import CompiledProgram
from fv_jax.planning.planner import PlanRequest
from fv_jax.planning.report import PhaseReport
from fv_jax.planning.sampled_stages import SampledPipeline
from fv_jax.training.run.setup import TrainConfig

ONE_CLIP = (('data.loader.batch_size', '1'),)
BATCH_64 = (
    ('data.loader.batch_size', '64'),
    ('parallel.data', '2'),  # 1920 does not divide by 256
    ('parallel.fsdp', '32'),
    ('parallel.context', '4'),
)
NO_EMA = (*ONE_CLIP, ('optim.ema_decay', '0'), ('data.cache', "{'num_degraded_variants': 1, 'crop': None}"))
ONE_BRANCH = (('guidance_batched', 'false'),)
TILES = (*ONE_BRANCH, ('tile_size', '400,528'))
TWO_MICROBATCHES = (('loop.microbatches', '2'),)
CACHED_LATENTS = ('data.cache', "{'num_degraded_variants': 0, 'crop': None}")


@dataclasses.dataclass(frozen=True)
class Case:
    """A program of a configuration on a slice.

    Attributes:
      config: of a training run; None for a stage of the official release, which is sampled alone.
      overrides: of the config, or of the settings of the stage whose phase it is.
      phase: its name.
      filters: words of the names of programs; () takes all.
      limit: GiB per chip.
      max_communication: limit of the communication time, as a fraction of the executed time.
    """

    config: str | None
    topology: str
    overrides: tuple[tuple[str, str], ...]
    phase: str
    filters: tuple[str, ...]
    limit: float
    max_communication: float | None = None


CASES = {
    'step_v5e8': Case('configs/stage2.py', 'v5e-8', ONE_CLIP, 'training', (), 15),
    'step_v6e4': Case('configs/stage2.py', 'v6e-4', ONE_CLIP, 'training', (), 28),
    'step_v5e4': Case('configs/stage2.py', 'v5e-4', NO_EMA, 'training', ('step',), 15),
    'lora': Case('configs/stage1.py', 'v5e-8', (*TWO_MICROBATCHES, CACHED_LATENTS), 'training', (), 15),
    'full': Case('configs/stage1.py:full_ft', 'v6e-8', TWO_MICROBATCHES, 'training', (), 30),
    'sample1': Case(None, 'v6e-8', (), 'stage1', (), 30),
    'sample2': Case(None, 'v6e-8', (), 'stage2', (), 30),
    'sample1_one': Case(None, 'v5e-1', ONE_BRANCH, 'stage1', ('step',), 15),
    'sample2_one': Case(None, 'v5e-1', TILES, 'stage2', (), 15),
    't5': Case(None, 'v5e-1', (), 'text of stage1', ('T5',), 15),
    'pod': Case('configs/stage2.py', 'v5p:4x8x8', BATCH_64, 'training', ('step',), 95, max_communication=0.2),
}


def compile_case(case: Case) -> PhaseReport:
    """Compiles the programs of a case."""
    topology = slices.parse(case.topology)
    if case.config is not None:
        config = read_config(TrainConfig, case.config, case.overrides)
        (phase,) = planner.plan(PlanRequest(topology, config, filters=case.filters)).phases
        return phase
    stages = {stage.name: stage for stage in sampled_stages.official_stages(STAGES)}
    name = case.phase.removeprefix('text of ')
    settings = override_settings(stages[name].settings, name, case.overrides)
    chosen = {name: dataclasses.replace(stages[name], settings=settings)}
    pipeline = SampledPipeline(*map(chosen.get, STAGES))
    report = planner.plan(PlanRequest(topology, pipeline=pipeline, filters=case.filters))
    (phase,) = (phase for phase in report.phases if phase.name == case.phase)
    return phase


def report_case(name: str, case: Case) -> bool:
    """Prints the memory and time of a case. Returns whether they are within its limits."""
    phase = compile_case(case)
    within = phase.fits(slices.parse(case.topology).chip)
    size = phase.peak_bytes
    within &= size <= case.limit * GIB
    share = phase.times.communication / phase.times.executed
    within &= case.max_communication is None or share <= case.max_communication
    resident = ', '.join(f'{what} {size / GIB:.2f}' for what, size in phase.resident.items())
    verdict = 'ok' if within else 'ABOVE'
    print(f'{name}: {size / GIB:.2f} of {case.limit} GiB on {case.topology}: {verdict}; resident: {resident}')
    for program in phase.programs:
        details = ''
        if isinstance(program.compiled, CompiledProgram):
            kinds = ', '.join(f'{kind} {sent / GIB:.2f}' for kind, sent in program.compiled.traffic.sent_bytes.items())
            details = f', temporaries {program.compiled.temp_bytes / GIB:.2f}, sends {kinds or "nothing"}'
        details += f', compiled in {program.compiled.seconds:.0f} s'
        print(f'  {program.name}: transient {program.transient_bytes / GIB:.2f}{details}')
    times, host = phase.times, resource.getrusage(resource.RUSAGE_SELF)
    print(
        f'  roofline {times.peak:.3g} s at peak, {times.roofline:.3g} at the roofline, {times.executed:.3g} executed, '
        f'communication {times.communication:.3g} ({share:.0%}); {host.ru_utime + host.ru_stime:.0f} s of CPU, '
        f'{host.ru_maxrss / 2**20:.2f} GiB of host memory so far',
        flush=True,
    )
    return within


@pytest.mark.tpu
@pytest.mark.parametrize('name', CASES)
def test_full_size_memory_is_within_its_limit(name):
    pytest.importorskip('libtpu')
    assert report_case(name, CASES[name])


if __name__ == '__main__':
    chosen = sys.argv[1:] or list(CASES)
    if unknown := set(chosen) - set(CASES):
        sys.exit(f'unknown case {sorted(unknown)[0]!r}; use one of {", ".join(CASES)}')
    sys.exit(0 if all([report_case(name, CASES[name]) for name in chosen]) else 1)
