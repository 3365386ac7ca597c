"""The full-size figures: what each program of the real configurations needs, by the compiler, on slices not there.

    python -m tests.tpu.full_size            # all rows: 15 minutes on two cores
    python -m tests.tpu.full_size lora t5    # rows by name
    python -m pytest -m tpu tests/tpu/full_size.py -k lora    # the same as tests

Prints a line a row, and exits with 1 when one is above its limit. Memory is what stays plus the largest program's own,
a chip; for 'decode' the temporaries alone. By libtpu 0.0.52, in GiB a chip:

    row            measured  limit
    step_v5e8        10.44     15     the VAE's encode of 16 more frames; the step alone 8.4
    step_v6e4        20.27     28     the same; the step alone 15.3
    step_v5e4        13.93     15
    lora             10.82     15     what stays 3.43, beside it 7.39
    full             24.51     30     what stays 11.04, beside it 13.47
    sample2           6.50     14
    decode            3.47      6     temporaries
    sample1          13.60     15
    sample2_one      10.52     15     the sampler
    sample2_tiles    13.68     15     the VAE's decode of a tile's 2 more latent frames
    t5                9.17     15
    pod               7.98     95     collectives take 4 % of the roofline's time; 20 % allowed
"""

import dataclasses
import resource
import sys

import pytest

from fv_jax.core.command_line import read_config
from fv_jax.core.hardware import GIB
from fv_jax.models.vae import OFFICIAL
from fv_jax.models.vae_tiling import Tiling
from fv_jax.planning import planner, slices
from fv_jax.planning.compiling import Compiled
from fv_jax.planning.report import PhaseReport
from fv_jax.training.run.setup import TrainConfig

ONE_CLIP = (('data.loader.batch_size', '1'),)
BATCH_64 = (
    ('data.loader.batch_size', '64'),
    ('parallel.data', '2'),  # 1920 does not divide by 256
    ('parallel.fsdp', '32'),
    ('parallel.context', '4'),
)
NO_AVERAGE = (*ONE_CLIP, ('optim.ema_decay', '0'), ('data.cache', "{'num_degraded_variants': 1, 'crop': None}"))
IN_TURN = (*ONE_CLIP, ('stage.options.guidance_batched', 'false'))
HALVES = (('loop.microbatches', '2'),)
IN_TURN_FIRST = (('data.loader.batch_size', '1'), ('stage.options.guidance_batched', 'false'))


@dataclasses.dataclass(frozen=True)
class Row:
    """limit: GiB a chip. temporaries: of the largest program alone are limited. share: traffic of the roofline time.
    tiling: of the VAE.
    """

    config: str
    topology: str
    overrides: tuple[tuple[str, str], ...]
    phase: str
    only: tuple[str, ...]
    limit: float
    temporaries: bool = False
    share: float | None = None
    tiling: Tiling | None = None


ROWS = {
    'step_v5e8': Row('configs/stage2.py', 'v5e-8', ONE_CLIP, 'training', (), 15),
    'step_v6e4': Row('configs/stage2.py', 'v6e-4', ONE_CLIP, 'training', (), 28),
    'step_v5e4': Row('configs/stage2.py', 'v5e-4', NO_AVERAGE, 'training', ('step',), 15),
    'lora': Row('configs/stage1.py', 'v5e-8', HALVES, 'training', ('step',), 15),
    'full': Row('configs/stage1.py:full_ft', 'v6e-8', HALVES, 'training', ('step',), 30),
    'sample2': Row('configs/stage2.py', 'v5e-4', ONE_CLIP, 'sampling', ('sampler',), 14),
    'decode': Row('configs/stage2.py', 'v5e-8', ONE_CLIP, 'sampling', ('decode',), 6, temporaries=True),
    'sample1': Row('configs/stage1.py', 'v5e-1', IN_TURN_FIRST, 'sampling', ('sampler',), 15),
    'sample2_one': Row('configs/stage2.py', 'v5e-1', IN_TURN, 'sampling', ('sampler',), 15),
    'sample2_tiles': Row(
        'configs/stage2.py',
        'v5e-1',
        IN_TURN,
        'sampling',
        (),
        15,
        tiling=Tiling((568, 528), 64, OFFICIAL.latent_spec.spatial),
    ),
    't5': Row('configs/stage1.py', 'v5e-1', (), 'text', (), 15),
    'pod': Row('configs/stage2.py', 'v5p:4x8x8', BATCH_64, 'training', ('step',), 95, share=0.2),
}


def measure(row: Row) -> PhaseReport:
    """Compiles what a row names."""
    config = read_config(TrainConfig, row.config, row.overrides)
    request = planner.Request(config, slices.parse(row.topology), (row.phase,), row.only, row.tiling)
    (phase,) = planner.plan(request).phases
    return phase


def show(name: str, row: Row) -> bool:
    """Prints a row's figures. Returns whether they are within its limits."""
    phase = measure(row)
    compiled = [item.compiled for item in phase.items]
    within = phase.fits(slices.parse(row.topology).chip)
    size = phase.needed
    if row.temporaries:
        size = max(c.temporaries if isinstance(c, Compiled) else c.needed for c in compiled)
    within &= size <= row.limit * GIB
    share = phase.times.traffic / phase.times.executed
    within &= row.share is None or share <= row.share
    stays = ', '.join(f'{what} {held / GIB:.2f}' for what, held in phase.resident.items())
    print(
        f'{name}: {size / GIB:.2f} of {row.limit} GiB on {row.topology}: {"ok" if within else "ABOVE"}; stays: {stays}'
    )
    for item in phase.items:
        taken = ''
        if isinstance(item.compiled, Compiled):
            kinds = ', '.join(f'{kind} {sent / GIB:.2f}' for kind, sent in item.compiled.traffic.sent.items())
            taken = f', temporaries {item.compiled.temporaries / GIB:.2f}, sends {kinds or "nothing"}'
        print(f'  {item.name}: beside {item.beside / GIB:.2f}{taken}, compiled in {item.compiled.seconds:.0f} s')
    times, host = phase.times, resource.getrusage(resource.RUSAGE_SELF)
    print(
        f'  roofline {times.peak:.3g} s at peak, {times.ceiling:.3g} at the ceiling, {times.executed:.3g} executed, '
        f'traffic {times.traffic:.3g} ({share:.0%}); {host.ru_utime + host.ru_stime:.0f} s of CPU, '
        f'{host.ru_maxrss / 2**20:.2f} GiB of host memory so far',
        flush=True,
    )
    return within


@pytest.mark.tpu
@pytest.mark.parametrize('name', ROWS)
def test_a_row_is_within_its_limits(name):
    pytest.importorskip('libtpu')
    assert show(name, ROWS[name])


if __name__ == '__main__':
    chosen = sys.argv[1:] or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        sys.exit(f'{sorted(unknown)[0]}: no row of that name; {", ".join(ROWS)}')
    sys.exit(0 if all([show(name, ROWS[name]) for name in chosen]) else 1)
