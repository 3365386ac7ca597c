"""The command: what it refuses, in one line; what it says of GPUs, which need no compiler."""

import dataclasses
import json
import subprocess
import sys

import pytest

from fv_jax import plan
from fv_jax.core.command_line import read_config
from fv_jax.planning import compiling, flops, planner, slices
from fv_jax.planning.collectives import Traffic
from fv_jax.planning.compiling import Compiled, TooLarge
from fv_jax.planning.programs import Executable, Phase
from fv_jax.planning.report import executed, roofline
from fv_jax.training.run.setup import TrainConfig
from tests import runs

REAL, SMOKE = 'configs/stage2.py', 'configs/stage2.py:smoke'


def run(capsys, *flags: str) -> tuple[int, str, str]:
    code = plan.main(flags)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--topology=v9-8',), 'v9 is no known generation'),
        (('--topology=v6e-9',), 'v6e comes in 1, 4, 8'),
        (('--topology=v5e-8', '--phases=trainig'), 'trainig is not one of training, sampling, text'),
        (('--topology=v5e-8', '--json=nowhere/plan.json'), 'its folder does not exist'),
        (('--topology=v5e-8', '--search', '--find-smallest-slice'), 'give one of them'),
        (('--topology=v9', '--find-smallest-slice'), 'v9 is no known generation'),
        (('--topology=h100-1', '--config.parallel.context=3'), 'context 3 needs 3 device(s) and there are 1'),
        (('--topology=h100-1', '--tile-size=100x64'), 'tile_size: height=100: must be a multiple of 8'),
        (('--topology=h100-1', '--tile-overlap=8'), 'has no effect without --tile-size'),
    ],
)
def test_wrong_usage_is_one_line(capsys, flags, message):
    code, out, err = run(capsys, f'--config={SMOKE}', *flags)
    assert code == 2 and message in err and err.count('\n') == 1 and not out


def test_a_vae_is_no_stage_to_plan(capsys):
    code, _, err = run(capsys, '--config=configs/vae.py:smoke', '--topology=h100-1')
    assert code == 2 and 'lowres and superres can be planned' in err


def test_without_libtpu_it_says_which_extra(capsys, monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, 'find_spec', lambda name: None)
    code, _, err = run(capsys, f'--config={SMOKE}', '--topology=v5e-8')
    assert code == 2 and "pip install 'fv_jax[plan]'" in err and err.count('\n') == 1


def test_a_gpu_by_formula(capsys, tmp_path):
    file = tmp_path / 'plan.json'
    one_clip = '--config.data.loader.batch_size=1'
    code, out, err = run(capsys, f'--config={REAL}', '--topology=h200-1', one_clip, f'--json={file}')
    found = json.loads(file.read_text())
    training, sampling = found['phases']
    assert (code, err) == (0 if found['fits'] else plan.DOES_NOT_FIT, '')
    assert 'by formula' in out and 'official VAE' in out
    # 1.7 billion parameters in float32, twice that for Adam, once for the average.
    assert training['resident']['parameters'] == pytest.approx(4 * 1.71e9, rel=0.02)
    assert training['resident']['optimizer'] == pytest.approx(2 * training['resident']['parameters'], rel=0.01)
    assert sampling['resident']['parameters'] == pytest.approx(training['resident']['parameters'] / 2, rel=0.01)
    step = training['executables'][0]
    assert step['compiled'] is None and step['flops']['attention'] == pytest.approx(7.58e15, rel=0.01)
    # 5 evaluations, guided.
    sampler = sampling['executables'][0]
    assert sampler['flops']['total'] == pytest.approx(10 * step['flops']['total'] / 3, rel=0.01)


def test_tiles_on_one_gpu(capsys, tmp_path):
    found = {}
    flags = f'--config={REAL}', '--topology=h100-1', '--config.data.loader.batch_size=1', '--phases=sampling'
    for name, more in (('whole', ()), ('tiles', ('--tile-size=568x528',))):
        file = tmp_path / f'{name}.json'
        _, out, err = run(capsys, *flags, *more, f'--json={file}')
        (phase,) = json.loads(file.read_text())['phases']
        found[name] = {item['name']: item for item in phase['executables']}
        assert not err and '1 h100 device(s)' in out and 'cpu' not in out
        assert ('video' in phase['resident']) == bool(more)
    assert found['whole'].keys() == found['tiles'].keys()
    for name in found['whole']:
        whole, tiles = found['whole'][name], found['tiles'][name]
        if name == 'sampler':
            assert tiles == whole
            continue
        assert tiles['runs'] == 8 * whole['runs']
        assert tiles['beside'] == pytest.approx(568 * 528 / (1072 * 1920) * whole['beside'])
        assert tiles['flops']['vae'] == pytest.approx(8 * 568 * 528 / (1072 * 1920) * whole['flops']['vae'], rel=0.01)


def test_tiles_are_for_stage_2_on_one_device(capsys):
    flags = '--phases=sampling', '--tile-size=568x528'
    code, out, err = run(capsys, '--config=configs/stage1.py', '--topology=h100-1', *flags)
    assert code == 2 and 'previews are decoded in whole' in err and err.count('\n') == 1 and not out
    # CPU devices stand for eight: as many are there only in a process that has not asked for one yet.
    command = [sys.executable, '-m', 'fv_jax.plan', f'--config={REAL}', '--topology=h100-8', *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert done.returncode == 2 and 'tiles are for one device' in done.stderr and done.stderr.count('\n') == 1


def test_what_does_not_fit_is_a_result_with_what_to_change(capsys):
    many, encoded = (
        '--config.data.loader.batch_size=64',
        "--config.data.cache={'num_degraded_variants': 1, 'crop': None}",
    )
    code, out, err = run(capsys, f'--config={REAL}', '--topology=h100-1', many, encoded, '--phases=training')
    assert code == plan.DOES_NOT_FIT and not err
    assert 'DOES NOT FIT' in out
    for change in (
        'batch_size=32',
        'microbatches=2',
        'remat=offload',
        'momentum_dtype=bfloat16',
        'ema_decay=0',
        '--topology=h100-2',
    ):
        assert change in out, change


def test_microbatches_take_less_memory(capsys, tmp_path):
    """Of a large batch's activations half, for one sum of gradients."""
    common = f'--config={SMOKE}', '--topology=h200-1', '--config.data.loader.batch_size=4', '--phases=training'
    beside = []
    for microbatches in (1, 2):
        file = tmp_path / f'{microbatches}.json'
        run(capsys, *common, f'--config.loop.microbatches={microbatches}', '--filter=step', f'--json={file}')
        (phase,) = json.loads(file.read_text())['phases']
        beside.append(phase['executables'][0]['beside'])
    parameters = phase['resident']['parameters']
    assert beside[1] - 2 * parameters == pytest.approx((beside[0] - parameters) / 2)


def lowered(result):
    """Stands for a lowered program: compiling it gives the result, or raises it."""

    class Lowered:
        def compile(self):
            if isinstance(result, Exception):
                raise result
            return result

    return Lowered


class Memory:
    argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 100, 50, 40
    temp_size_in_bytes, generated_code_size_in_bytes = 7, 3


class Program:
    def memory_analysis(self):
        return Memory

    def as_text(self):
        return ''


def test_what_the_compiler_says():
    found = compiling.compile_ahead(lowered(Program()), 8)
    assert isinstance(found, Compiled) and (found.arguments, found.temporaries, found.fresh) == (100, 7, 10)
    assert found.traffic == Traffic({}, {})
    message = 'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: ... temporaries (20.16G) exceeds available HBM (15.75G).'
    refused = compiling.compile_ahead(lowered(compiling.jax.errors.JaxRuntimeError(message)), 8)
    assert isinstance(refused, TooLarge) and refused.needed == pytest.approx(20.16 * 2**30)
    message = 'Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.'
    assert compiling.compile_ahead(lowered(compiling.jax.errors.JaxRuntimeError(message)), 8).needed == 2**29
    with pytest.raises(compiling.jax.errors.JaxRuntimeError, match='Mosaic'):
        compiling.compile_ahead(lowered(compiling.jax.errors.JaxRuntimeError('INTERNAL: Mosaic failed')), 8)


def test_the_ceiling_that_heads_of_64_allow():
    flops = planner.programs.Flops(attention=4e15, linear=1e15)
    for name, share in (('v5e-8', 0.5), ('v6e-8', 0.25), ('h100-8', 1.0)):
        where = slices.parse(name)
        times = roofline(flops, planner.programs.Flops(), where.chip, where.devices, 64)
        rate = 8 * where.chip.flops
        assert times.peak == pytest.approx(5e15 / rate) and times.ceiling == pytest.approx((4e15 / share + 1e15) / rate)


def test_wider_heads_take_half_the_time_where_the_matrix_unit_is_wider():
    """The same model FLOPs; on GPUs heads of 64 run at full rate, and nothing is said."""
    configs = [read_config(TrainConfig, name, [('data.loader.batch_size', '1')]) for name in (REAL, f'{REAL}:head128')]
    narrow, wide = (config.stage.network for config in configs)
    assert (narrow.num_heads, wide.num_heads, wide.head_dim) == (30, 15, 128)
    assert dataclasses.replace(wide, num_heads=30) == narrow
    row = flops.Sequence(text=226, video=13 * 67 * 120)
    work, again = (f(narrow, row) for f in (flops.dit_training, flops.recomputed))
    assert (work, again) == (flops.dit_training(wide, row), flops.recomputed(wide, row))
    step = Executable('training step', lambda: None, 1, work, again, 0, 0)
    for name, saved in (('v5e-8', 0.48), ('v6e-8', 0.49), ('h100-8', 0)):
        where = slices.parse(name)
        phase = Phase('training', {}, (step,), 1, narrow.head_dim)
        before, after = (executed(phase, where, 8, size) for size in (64, 128))
        assert 1 - after / before == pytest.approx(saved, abs=0.01)
        said = list(planner._wider_heads(phase, planner.Request(configs[0], where), 8))
        assert len(said) == (saved > 0)
        if said:
            assert (
                f'heads of 128 (--config.stage.network.num_heads=15) would take {after:.3g} s in place of {before:.3g}'
                in said[0]
            )
