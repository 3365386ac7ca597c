"""The command `plan`: one-line errors, plans of GPUs by formula, suggestions."""

import ast
import dataclasses
import json
import re
import subprocess
import sys

import pytest

from fv_jax import plan
from fv_jax.core.command_line import read_config
from fv_jax.planning import compiling, flops, planner, slices, table
from fv_jax.planning.collectives import CollectiveTraffic
from fv_jax.planning.compiling import CompiledProgram, CompileOutOfMemory
from fv_jax.planning.programs import Phase, PlannedProgram
from fv_jax.planning.report import Report, compile_phases, compute_times, executed_seconds
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
        (('--topology=v9-8',), "unknown generation 'v9'"),
        (('--topology=v6e-9',), 'v6e comes in 1, 4, 8'),
        (('--topology=v5e-8', '--only=training'), 'training is not one of train, sample'),
        (('--topology=v5e-8', '--only=train', '--stage2.num_steps=3'), 'has no effect without --only=sample'),
        (('--topology=v5e-8', '--stage1.num_steps=3'), 'as stage2 alone is planned'),
        (('--topology=h100-1', '--stage2.num_step=3'), "did you mean 'num_steps'?"),
        (('--topology=h100-1', '--parallel.context=3'), 'context 3 does not divide 1 device(s)'),
        (('--topology=h100-1', '--batch-size=0'), 'must be at least 1'),
        (('--topology=v5e-8', '--json=nowhere/plan.json'), 'its folder does not exist'),
        (('--topology=v5e-8', '--search', '--find-smallest-slice'), 'give one of them'),
        (('--topology=v9', '--find-smallest-slice'), "unknown generation 'v9'"),
        (('--topology=h100-1', '--config.parallel.context=3'), 'context 3 needs 3 device(s) and there are 1'),
        (('--topology=h100-1', '--tile-size=100x64'), 'tile_size: height=100: must be a multiple of 8'),
        (('--topology=h100-1', '--tile-overlap=8'), 'has no effect without --tile-size'),
    ],
)
def test_usage_errors_are_one_line(capsys, flags, message):
    code, out, err = run(capsys, f'--config={SMOKE}', *flags)
    assert code == 2 and message in err and err.count('\n') == 1 and not out


def test_vae_stage_cannot_be_planned(capsys):
    code, _, err = run(capsys, '--config=configs/vae.py:smoke', '--topology=h100-1')
    assert code == 2 and 'lowres, superres, flow_map; no other stage can be planned' in err


def test_missing_libtpu_is_an_error_that_names_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, 'find_spec', lambda name: None)
    code, _, err = run(capsys, f'--config={SMOKE}', '--topology=v5e-8')
    assert code == 2 and "pip install 'fv_jax[plan]'" in err and err.count('\n') == 1


def test_gpu_plan_by_formula(capsys, tmp_path):
    file = tmp_path / 'plan.json'
    one_clip = '--config.data.loader.batch_size=1'
    code, out, err = run(capsys, f'--config={REAL}', '--topology=h200-1', one_clip, f'--json={file}')
    found = json.loads(file.read_text())
    training, sampling = found['phases']
    assert (training['name'], sampling['name']) == ('training', 'stage2')
    assert (code, err) == (0 if found['fits'] else plan.DOES_NOT_FIT, '')
    assert 'by formula' in out and 'official VAE' in out
    # 1.7 billion parameters in float32, twice that for Adam, once for the average.
    assert training['resident_bytes']['parameters'] == pytest.approx(4 * 1.71e9, rel=0.02)
    assert training['resident_bytes']['optimizer'] == pytest.approx(
        2 * training['resident_bytes']['parameters'], rel=0.01
    )
    assert sampling['resident_bytes']['stage2'] == training['resident_bytes']['parameters']
    step = training['programs'][0]
    assert step['compiled'] is None and step['flops']['attention'] == pytest.approx(7.58e15, rel=0.01)
    # 5 evaluations, not guided: the config names no text encoder.
    (sampler,) = (each for each in sampling['programs'] if each['name'] == 'sampler step')
    assert sampler['runs'] == 5 and sampler['flops']['total'] == pytest.approx(5 * step['flops']['total'] / 3, rel=0.01)


def test_plan_of_distillation_has_the_cost_of_each_kind_of_targets(capsys):
    flags = '--only=train', '--config.loop.microbatches=1', '--config.data.loader.batch_size=1'
    code, out, err = run(capsys, f'--config={REAL}:distil', '--topology=h200-1', *flags)
    assert code == 0, err
    found = re.search(
        r'note: training step: ([\d.]+) s with targets of the data; .* expected ([\d.]+) s, ([\d.]+) times', out
    )
    alone, expected, times = (float(value) for value in found.groups())
    assert 1.4 < times < 1.75 and expected == pytest.approx(times * alone, rel=0.02)
    kinds = re.findall(r'(velocity|step|split) ([\d.]+) s \((\d+)%\)', out)
    assert [(name, share) for name, _, share in kinds] == [('velocity', '25'), ('step', '25'), ('split', '50')]
    assert expected == pytest.approx(sum(float(time) * int(share) / 100 for _, time, share in kinds), rel=0.02)


def test_tiling_scales_vae_memory_and_flops(capsys, tmp_path):
    found = {}
    flags = f'--config={REAL}', '--topology=h100-1', '--only=sample'
    for name, more in (('whole', ()), ('tiles', ('--tile-size=568x528',))):
        file = tmp_path / f'{name}.json'
        _, out, err = run(capsys, *flags, *more, f'--json={file}')
        (phase,) = json.loads(file.read_text())['phases']
        found[name] = {item['name']: item for item in phase['programs']}
        assert not err and '1 h100 device(s)' in out and 'cpu' not in out
    assert found['whole'].keys() == found['tiles'].keys()
    for name in found['whole']:
        whole, tiles = found['whole'][name], found['tiles'][name]
        if name in ('sampler step', 'resize'):
            assert tiles == whole
            continue
        assert tiles['runs'] == 8 * whole['runs']
        assert tiles['transient_bytes'] == pytest.approx(568 * 528 / (1072 * 1920) * whole['transient_bytes'])
        assert tiles['flops']['vae'] == pytest.approx(8 * 568 * 528 / (1072 * 1920) * whole['flops']['vae'], rel=0.01)


def test_tiling_requires_stage_2(capsys):
    flags = '--only=sample', '--tile-size=568x528'
    code, out, err = run(capsys, '--config=configs/stage1.py', '--topology=h100-1', *flags)
    assert code == 2 and 'previews are decoded without tiles' in err and err.count('\n') == 1 and not out


def test_official_release_from_text_to_video_on_eight_gpus(tmp_path):
    """The number of CPU devices, in place of GPUs, can be set only before JAX is initialized: in a new process."""
    file = tmp_path / 'plan.json'
    command = [sys.executable, '-m', 'fv_jax.plan', '--topology=h100-8', f'--json={file}']
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    phases = {phase['name']: phase for phase in json.loads(file.read_text())['phases']}
    assert [*phases] == ['text of stage1', 'stage1', 'text of stage2', 'stage2']
    # T5 runs on one device, beside what was loaded before it; networks stay loaded.
    resident = [set(phase['resident_bytes']) for phase in phases.values()]
    assert resident == [{'T5'}, {'stage1', 'VAE'}, {'stage1', 'VAE', 'T5'}, {'stage1', 'stage2', 'VAE', 'video'}]
    assert phases['stage1']['resident_bytes']['stage1'] == pytest.approx(2 * 5.57e9, rel=0.01)
    programs = {each['name']: each for each in phases['stage2']['programs']}
    # Guided: 2 x 5 evaluations of 7.58e15 / 3 each, over all devices, and the decoding of the small video over the
    # four that divide its 60 columns of latents.
    assert programs['sampler step']['flops']['attention'] == pytest.approx(10 * 7.58e15 / 3, rel=0.01)
    for name, devices in (('sampler step', 8), ('VAE decode, 2 more', 8), ('preview VAE decode, 2 more', 4)):
        assert programs[name]['times']['peak'] == pytest.approx(programs[name]['flops']['total'] / (devices * 989e12))
    total = sum(phase['times']['roofline'] for phase in phases.values())
    line = f'in all {total:.3g} s at the roofline'
    assert line in done.stdout and 'stage2             sampler step            5' in done.stdout


def test_run_that_does_not_fit_prints_suggestions(capsys):
    many, cached = (
        '--config.data.loader.batch_size=64',
        "--config.data.cache={'num_degraded_variants': 1, 'crop': None}",
    )
    whole = '--config.loop.microbatches=1'
    code, out, err = run(capsys, f'--config={REAL}', '--topology=h100-1', many, cached, whole, '--only=train')
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


@pytest.mark.parametrize(('config', 'variants'), [('stage1', 0), ('stage2', 2)])
def test_suggested_latent_cache_has_what_the_stage_needs(config, variants, capsys):
    batch = '--config.data.loader.batch_size=256', '--config.loop.microbatches=1'
    flags = '--topology=h100-1', '--only=train', '--filter=VAE', *batch
    code, out, _ = run(capsys, f'--config={config}', *flags)
    assert code == plan.DOES_NOT_FIT
    (cache,) = re.findall(r'--config\.(data\.cache)="(.*)"', out)
    assert ast.literal_eval(cache[1])['num_degraded_variants'] == variants
    read_config(TrainConfig, config, [cache])


def test_microbatches_halve_activation_memory(capsys, tmp_path):
    """At the price of a second copy of the gradients."""
    common = f'--config={SMOKE}', '--topology=h200-1', '--config.data.loader.batch_size=4', '--only=train'
    transient = []
    for microbatches in (1, 2):
        file = tmp_path / f'{microbatches}.json'
        run(capsys, *common, f'--config.loop.microbatches={microbatches}', '--filter=step', f'--json={file}')
        (phase,) = json.loads(file.read_text())['phases']
        transient.append(phase['programs'][0]['transient_bytes'])
    parameters = phase['resident_bytes']['parameters']
    assert transient[1] - 2 * parameters == pytest.approx((transient[0] - parameters) / 2)


def fake_lowered(result):
    """Returns a fake lowered program; compiling it returns the result, or raises it."""

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


def test_compile_ahead_reads_memory_and_out_of_memory_errors():
    compiled = compiling.compile_ahead(fake_lowered(Program()), 8)
    assert isinstance(compiled, CompiledProgram)
    assert (compiled.argument_bytes, compiled.temp_bytes, compiled.output_bytes) == (100, 7, 10)
    assert compiled.traffic == CollectiveTraffic({}, {})
    message = 'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: ... temporaries (20.16G) exceeds available HBM (15.75G).'
    refused = compiling.compile_ahead(fake_lowered(compiling.jax.errors.JaxRuntimeError(message)), 8)
    assert isinstance(refused, CompileOutOfMemory) and refused.required_bytes == pytest.approx(20.16 * 2**30)
    message = 'Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.'
    refused = compiling.compile_ahead(fake_lowered(compiling.jax.errors.JaxRuntimeError(message)), 8)
    assert refused.required_bytes == 2**29
    with pytest.raises(compiling.jax.errors.JaxRuntimeError, match='Mosaic'):
        compiling.compile_ahead(fake_lowered(compiling.jax.errors.JaxRuntimeError('INTERNAL: Mosaic failed')), 8)


def test_estimate_of_the_compiler_is_reported_beside_the_roofline():
    class Estimated(Program):
        def as_text(self):
            cycles = '{"estimated_cycles":"3000000000"}'
            return f'ENTRY %main (a: f32[]) -> f32[] {{\n  ROOT %b = f32[] fusion(%a), backend_config={cycles}\n}}\n'

    step = PlannedProgram(
        name='training step',
        lower=fake_lowered(Estimated()),
        runs=2,
        flops=flops.Flops(attention=1e15, linear=8 * 197e12),
        devices=8,
        estimated_bytes=0,
    )
    topology = slices.parse('v5e-8')
    (report,) = compile_phases([Phase('training', {}, (step,), 1, 8, 64, '', '')], topology)
    assert (report.times.others, report.times.estimated) == (2, 4)  # seconds, at 1.5 GHz
    (line,) = (line for line in table.format_report(Report(topology, (report,), ())) if 'estimate' in line)
    assert "2 s at the roofline, 4 s by the compiler's estimate" in line


def test_roofline_of_attention_with_heads_of_64():
    work = flops.Flops(attention=4e15, linear=1e15)
    for name, share in (('v5e-8', 0.5), ('v6e-8', 0.25), ('h100-8', 1.0)):
        topology = slices.parse(name)
        times = compute_times(work, flops.Flops(), topology.chip, topology.devices, 64)
        rate = 8 * topology.chip.flops
        assert times.peak == pytest.approx(5e15 / rate) and times.roofline == pytest.approx(
            (4e15 / share + 1e15) / rate
        )


def test_roofline_is_that_of_the_exponentials_if_they_take_longer():
    chip = slices.parse('v6e-8').chip
    rate = 8 * chip.exponentials
    few, many = (
        compute_times(flops.Flops(attention=4e15, exponentials=seconds * rate), flops.Flops(), chip, 8, 64)
        for seconds in (0.1, 10)
    )
    assert few.roofline == pytest.approx(4e15 / (8 * chip.flops / 4)) and few.exponentials == pytest.approx(0.1)
    assert many.roofline == many.executed == many.exponentials == pytest.approx(10)


def test_core_without_work_is_counted():
    """A v5p has two cores, of which one has 8 of 15 heads in the backward pass, five of seven products."""
    work, chips = flops.Flops(attention=4e15), [slices.parse(name).chip for name in ('v5p-8', 'v6e-8')]
    ratios = [
        compute_times(work, flops.Flops(), chip, 4, 64, 15).executed
        / compute_times(work, flops.Flops(), chip, 4, 64, 30).executed
        for chip in chips
    ]
    assert ratios == pytest.approx([1 + 5 / 7 / 15, 1])


def test_wider_heads_are_suggested_where_the_matrix_unit_is_wider():
    """Model FLOPs are the same; on GPUs heads of 64 run at full rate, and there is no note."""
    configs = [read_config(TrainConfig, name, [('data.loader.batch_size', '1')]) for name in (REAL, f'{REAL}:head128')]
    narrow, wide = (config.stage.network for config in configs)
    assert (narrow.num_heads, wide.num_heads, wide.head_dim) == (30, 15, 128)
    assert dataclasses.replace(wide, num_heads=30) == narrow
    sequence = flops.SequenceLength(text=226, video=13 * 67 * 120)
    work, recompute = (f(narrow, sequence) for f in (flops.dit_training, flops.dit_recompute))
    for one, other in ((work, flops.dit_training(wide, sequence)), (recompute, flops.dit_recompute(wide, sequence))):
        assert one == dataclasses.replace(other, exponentials=2 * other.exponentials)
    step = PlannedProgram(
        name='training step', lower=lambda: None, flops=work, recompute=recompute, devices=8, estimated_bytes=0
    )
    for name, saved in (('v5e-8', 0.48), ('v6e-8', 0.49), ('h100-8', 0)):
        topology = slices.parse(name)
        phase = Phase('training', {}, (step,), 1, 8, narrow.head_dim, '', '')
        before, after = (executed_seconds(phase, topology, size) for size in (64, 128))
        assert 1 - after / before == pytest.approx(saved, abs=0.01)
        notes = list(planner.suggest_wider_heads([phase], planner.PlanRequest(topology, configs[0])))
        assert len(notes) == (saved > 0)
        if notes:
            assert (
                f'heads of 128 (--config.stage.network.num_heads=15) would take {after:.3g} s instead of {before:.3g}'
                in notes[0]
            )
