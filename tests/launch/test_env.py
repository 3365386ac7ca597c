"""The flags of each chip: complete with reasons, joined with what is set already, refused where they do harm."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.launch.scripts import LAUNCH, bash, launch, refused

TPUS = ('v4', 'v5e', 'v5p', 'v6e', 'v7x')
CHIPS = (*TPUS, 'gpu')
SPARSE = '--xla_tpu_enable_sparse_core_collective_offload_all_gather=true'


def exports(chip: str, *words: str, **env: str) -> dict[str, str]:
    """What `launch/env.sh` exports."""
    result = launch('env.sh', chip, *words, env=env)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith('export ')]
    return dict(shlex.split(line)[1].split('=', 1) for line in lines)


def flags(chip: str, *words: str, **env: str) -> list[str]:
    return exports(chip, *words, **env)['XLA_FLAGS' if chip == 'gpu' else 'LIBTPU_INIT_ARGS'].split()


@pytest.mark.parametrize('chip', CHIPS)
def test_every_xla_flag_has_a_reason(chip):
    output = launch('env.sh', chip).stdout
    reasons = dict(re.findall(r'^# (\S+)\n# +(\S.+)$', output, re.MULTILINE))
    exported = exports(chip)
    others = {f'{name}={value}' for name, value in exported.items() if name == 'XLA_PYTHON_CLIENT_MEM_FRACTION'}
    assert reasons.keys() == {*flags(chip), *others}
    assert all(len(reason) > 20 for reason in reasons.values())
    assert exported['FV_JAX_CHIP'] == chip


def test_sparse_core_flags_are_for_v7x_only():
    assert {chip for chip in CHIPS if SPARSE in flags(chip)} == {'v7x'}


def test_env_sourced_exports_what_it_prints():
    source = f'. {LAUNCH}/env.sh v5p 2 && printf %s "$LIBTPU_INIT_ARGS" && [[ -z ${{XLA_FLAGS:-}} ]]'
    assert bash('-euc', source).stdout.split() == flags('v5p', '2')


@pytest.mark.parametrize('other', CHIPS)
@pytest.mark.parametrize('chip', CHIPS)
def test_env_refuses_flags_of_a_second_chip(chip, other):
    result = launch('env.sh', other, env=exports(chip))
    if chip == other:
        assert result.returncode == 0
    else:
        assert refused(result, f'holds the flags of {chip}, not {other}')


@pytest.mark.parametrize('chip', TPUS)
def test_env_refuses_the_flags_that_hang_a_v5p(chip):
    """Also where nothing says whose flags they are."""
    for flag in [f for f in flags('v7x') if 'sparse_core' in f or 'offload_tracing' in f or '_on_sc' in f]:
        result = launch('env.sh', chip, env={'LIBTPU_INIT_ARGS': f'--xla_tpu_rwb_fusion=false {flag}'})
        if chip in ('v6e', 'v7x'):
            assert result.returncode == 0, result.stderr
        else:
            assert refused(result, flag, f'for v6e and v7x, not {chip}', 'hang a v5p')


def test_env_accepts_disabled_flags():
    off = SPARSE.replace('=true', '=false')
    assert off in flags('v5p', LIBTPU_INIT_ARGS=off)


@pytest.mark.parametrize(
    'words, env, parts',
    [
        ([], {}, ['chip is missing']),
        (['v3'], {}, ['v3: no such chip', 'v5p']),
        (['v5p', 'x'], {}, ['x: the number of slices']),
        (['v5p'], {'LIBTPU_INIT_ARGS': '--xla_tpu_rwb_fusion=false \\'}, ['backslash']),
        (['v5p'], {'LIBTPU_INIT_ARGS': '--xla_gpu_enable_triton_gemm=false'}, ['--xla_gpu', 'GPUs']),
        (['v5p'], {'LIBTPU_INIT_ARGS': '--xla_tpu_scoped_vmem_limit_kib=98304'}, ['v5p has 65536']),
        (['v4'], {'LIBTPU_INIT_ARGS': '--xla_tpu_scoped_vmem_limit_kib=65472'}, ['v4 has 16384']),
        (['v5p'], {'XLA_FLAGS': '--xla_tpu_rwb_fusion=false'}, ['XLA_FLAGS', 'LIBTPU_INIT_ARGS']),
        (['gpu'], {'XLA_FLAGS': SPARSE}, ['XLA_FLAGS', 'TPUs']),
        (['v5p'], {'TPU_ACCELERATOR_TYPE': 'v6e-16'}, ['v6e-16', 'not v5p']),
    ],
)
def test_env_usage_errors(words, env, parts):
    assert refused(launch('env.sh', *words, env=env), *parts)


@pytest.mark.parametrize('type_', ['v4-8', 'v5litepod-16', 'v5p-8', 'v6e-4', 'tpu7x-8'])
def test_env_detects_the_chip_from_metadata(type_):
    chip = {'v5litepod': 'v5e', 'tpu7x': 'v7x'}.get(type_.split('-')[0], type_.split('-')[0])
    assert flags(chip, TPU_ACCELERATOR_TYPE=type_) == flags(chip)


def test_env_error_leaves_the_shell_unchanged():
    source = f'. {LAUNCH}/env.sh v5p; echo "$? $LIBTPU_INIT_ARGS ${{FV_JAX_CHIP:-none}}"'
    assert bash('-c', source, env={'LIBTPU_INIT_ARGS': SPARSE}).stdout == f'2 {SPARSE} none\n'


def test_env_keeps_flags_that_are_set():
    own = '--xla_tpu_rwb_fusion=false --xla_latency_hiding_scheduler_rerun=1'
    ours = [f for f in flags('v5p') if 'rerun' not in f]
    assert flags('v5p', LIBTPU_INIT_ARGS=own) == [*own.split(), *ours]
    assert exports('gpu', XLA_PYTHON_CLIENT_MEM_FRACTION='.5')['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '.5'


@pytest.mark.parametrize('chip', CHIPS)
def test_env_is_idempotent(chip):
    assert exports(chip, **exports(chip)) == exports(chip)


def test_env_with_several_slices():
    more = set(flags('v5p', '2')) - set(flags('v5p'))
    assert more and all('data_parallel' in flag for flag in more)
    assert flags('v5p', MEGASCALE_NUM_SLICES='2') == flags('v5p', '2')
    assert flags('gpu', '2') == flags('gpu')


def test_installed_jax_accepts_the_gpu_flags():
    """XLA ends a program at a flag that it does not know, on any platform."""
    env = {**os.environ, **exports('gpu'), 'JAX_PLATFORMS': 'cpu'}
    result = subprocess.run(
        [sys.executable, '-c', 'import jax; jax.devices()'], env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
