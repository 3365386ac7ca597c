"""launch/run.sh: again after "preempted", and after nothing else; signals; no endless loop."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.scripts import LAUNCH, launch, refused

COUNT = 'echo x >> times; '
PREEMPTED = 75


def run(tmp_path: Path, command: str, *options: str, **env: str) -> subprocess.CompletedProcess:
    return launch('run.sh', '--chip=v5p', *options, '--', 'bash', '-c', command, home=tmp_path, env=env)


def times(tmp_path: Path) -> int:
    path = tmp_path / 'times'
    return len(path.read_text().split()) if path.exists() else 0


@pytest.mark.parametrize('code', [0, 1, 2, 7, 74, 76, 130])
def test_run_ends_with_any_other_exit_code(tmp_path, code):
    assert run(tmp_path, COUNT + f'exit {code}').returncode == code
    assert times(tmp_path) == 1


def test_run_does_not_restart_a_killed_command(tmp_path):
    assert run(tmp_path, COUNT + 'kill -KILL $$').returncode == 128 + signal.SIGKILL
    assert times(tmp_path) == 1


def test_run_restarts_a_preempted_command(tmp_path):
    result = run(tmp_path, COUNT + f'echo went on; [[ $(wc -l < times) == 2 ]] || exit {PREEMPTED}; exit 7')
    assert result.returncode == 7
    assert times(tmp_path) == 2
    assert result.stdout == 'went on\n' * 2
    assert 'preempted; running it again' in result.stderr


def test_run_gives_up_a_command_that_makes_no_progress(tmp_path):
    """With a code on which no launcher restarts it either."""
    result = run(tmp_path, COUNT + f'exit {PREEMPTED}')
    assert result.returncode == 1
    assert times(tmp_path) == 3
    assert '75 3 times in a row' in result.stderr.splitlines()[-1]


@pytest.mark.parametrize('stop_signal', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('code, signals', [(PREEMPTED, 1), (PREEMPTED, 3), (0, 1), (3, 1)])
def test_run_forwards_signals_and_returns_the_exit_code(tmp_path, stop_signal, code, signals):
    """75 too: the machine goes, so the command is not run again here."""
    saving = f'trap "sleep 0.3; echo saved > saved; exit {code}" TERM; echo x >> times; while :; do sleep 0.02; done'
    process = subprocess.Popen(
        ['bash', LAUNCH / 'run.sh', '--chip=gpu', '--', 'bash', '-c', saving],
        cwd=tmp_path,
        env={'PATH': os.environ['PATH']},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not times(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(signals):
        process.send_signal(stop_signal)
        time.sleep(0.05)
    process.communicate(timeout=300)
    assert process.returncode == code
    assert (tmp_path / 'saved').exists()
    assert times(tmp_path) == 1


def test_run_sets_the_xla_flags(tmp_path):
    assert '--xla_max_concurrent_async_all_gathers=4' in run(tmp_path, 'echo $LIBTPU_INIT_ARGS').stdout
    assert 'data_parallel' in run(tmp_path, 'echo $LIBTPU_INIT_ARGS', '--slices=2').stdout


def test_run_passes_arguments_unchanged(tmp_path):
    words = ['a b', "it's", '$HOME', '*', '', '--x={"y": 1}']
    result = launch('run.sh', '--chip', 'v4', '--', 'printf', '<%s>\\n', *words, home=tmp_path)
    assert result.stdout.splitlines() == [f'<{word}>' for word in words]


def test_run_refused_flags_stop_it_before_the_command(tmp_path):
    result = run(tmp_path, COUNT, LIBTPU_INIT_ARGS='--xla_sc_disjoint_spmem=true')
    assert refused(result, 'xla_sc_disjoint_spmem', 'v5p')
    assert times(tmp_path) == 0


def test_run_dry_run_executes_nothing(tmp_path):
    result = run(tmp_path, COUNT, '--dry-run')
    assert result.returncode == 0
    assert 'export LIBTPU_INIT_ARGS=' in result.stdout
    assert result.stdout.splitlines()[-1] == "bash -c 'echo x >> times; '"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'words, part',
    [
        (['--', 'true'], '--chip is missing'),
        (['--chip=v5p'], 'command is missing'),
        (['--chip=v9', '--', 'true'], 'v9: no such chip'),
        (['--chip=v5p', '--slices=0', '--', 'true'], '--slices=0'),
        (['--chip=v5p', 'true'], 'true: not an option'),
    ],
)
def test_run_usage_errors(words, part):
    assert refused(launch('run.sh', *words), part)


def test_run_exit_codes_are_those_of_the_package():
    code = {
        path.name
        for path in LAUNCH.iterdir()
        if path.is_file()
        and path.suffix != '.md'
        and re.search(rf'^[^#\n]*(?<![.\d]){PREEMPTED}\b', path.read_text(), re.MULTILINE)
    }
    assert code == {'common.sh'}
