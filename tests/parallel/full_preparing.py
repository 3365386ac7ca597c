"""`prepare` with latents and embeddings in several processes: the set of one process, also after a process has ended.

Latents of one machine are equal bit for bit. Over other devices of a process they are equal up to rounding.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from fv_jax import prepare
from fv_jax.core.exit_codes import PREEMPTED
from fv_jax.data.shards.shard_files import list_shards, read_records
from tests import runs
from tests.data import sample_videos
from tests.parallel.joined import filter_gloo_log
from tests.sampling import tiny

FLAGS = ['--config.frames=9', '--config.height=64', '--config.width=96', '--config.shard_mb=0.001']
FLAGS += ['--config.preset=ultrafast', '--config.detector=none', '--config.text.encoder=hash']
FLAGS += ['--config.latents.num_degraded_variants=1']
PREPARE = 'import sys; from fv_jax import prepare; sys.exit(prepare.main(sys.argv[1:]))'
VIDEOS = 12  # a shard each
EXACT = {'rtol': 0.0, 'atol': 0.0}
ROUNDING = {'rtol': 2e-3, 'atol': 1e-4}  # two units in the last place of float16; latents have a deviation of 0.08


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('source')
    (folder / 'videos').mkdir()
    for i in range(VIDEOS):
        sample_videos.write_two_shots(folder / 'videos' / f'{i:02d}.mp4', frames=20)
        (folder / 'videos' / f'{i:02d}.txt').write_text(f'pattern {i}')
    (folder / 'videos' / 'text.mkv').write_text('not a video')
    tiny.save_vae(folder / 'vae.safetensors')
    return folder


def start(
    source: Path, output: Path, count: int, *more: str, devices: int = 1, second: str = ''
) -> list[subprocess.Popen]:
    """Starts so many processes, each with so many devices. second: a flag of the second one."""
    arguments = [f'--input={source}/videos', f'--output={output}', f'--config.latents.vae={source}/vae.safetensors']
    port, pipes = runs.free_port(), {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    started = []
    for i in range(count):
        own = [second] if second and i == 1 else []
        join = [f'--coordinator=127.0.0.1:{port}', f'--num-processes={count}', f'--process-id={i}'] if count > 1 else []
        command = [sys.executable, '-c', PREPARE, *arguments, *FLAGS, *more, *own, *join]
        environment = runs.environment(devices=devices)
        started.append(subprocess.Popen(command, cwd=runs.ROOT, env=environment, **pipes))
    return started


def wait(started: Sequence[subprocess.Popen]) -> tuple[list[int], list[str], list[str]]:
    """Returns exit codes, outputs and errors."""
    try:
        output = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any('Traceback' in err for _, err in output), output
    lines = [[line for line in out.splitlines() if line and not filter_gloo_log(line)] for out, _ in output]
    return [process.returncode for process in started], ['\n'.join(of) for of in lines], [err for _, err in output]


def await_shards(output: Path, started: Sequence[subprocess.Popen], count: int) -> dict[str, tuple[int, bytes]]:
    """Waits until so many shards are complete; returns times and contents of their files."""
    partial = output / '.clips.partial'
    while len(list(partial.glob('*.json'))) < count:
        assert all(process.poll() in (None, -signal.SIGKILL) for process in started), [p.poll() for p in started]
        time.sleep(0.02)
    return states(partial.glob('0*.array_record'))


def states(paths) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def content(output: Path) -> list[Mapping]:
    return list(read_records(list_shards(output)))


def assert_same(output: Path, whole: Path, rounding: Mapping[str, float] = EXACT) -> None:
    """The sets have the same files and records."""
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())
    found, wanted = content(output), content(whole)
    assert len(found) == len(wanted) > VIDEOS
    for record, other in zip(found, wanted, strict=True):
        assert record.keys() == other.keys() >= {'z_high', 'z_low', 'text', 'caption'}
        for key, value in other.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(record[key], value, **(rounding if key.startswith('z_') else EXACT))
            else:
                assert record[key] == value, key


@pytest.fixture(scope='module')
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of one process."""
    output = tmp_path_factory.mktemp('whole') / 'out'
    codes, _, errors = wait(start(source, output, 1))
    assert codes == [prepare.SKIPPED], errors
    return output


def test_two_processes_of_two_devices_make_the_set_of_one(source, whole, tmp_path):
    codes, (first, other), errors = wait(start(source, tmp_path / 'out', 2, devices=2))
    assert codes == [prepare.SKIPPED] * 2, errors
    assert '2 processes share the shards' in first and 'skipped: 1 file(s)' in first and other == ''
    assert_same(tmp_path / 'out', whole, ROUNDING)


def test_set_of_a_killed_process_is_completed_by_one(source, whole, tmp_path):
    output = tmp_path / 'out'
    first, second = started = start(source, output, 2)
    try:
        await_shards(output, started, 3)
        second.kill()
        # The first one makes its part: JAX ends it 100 seconds later.
        before = await_shards(output, started, VIDEOS // 2 + 1)
    finally:
        first.kill()
    for process in started:
        process.communicate()
    codes, (out,), errors = wait(start(source, output, 1))
    assert codes == [prepare.SKIPPED] and f'continuing clips: {len(before)} of {VIDEOS + 1} shards exist' in out, errors
    assert_same(output, whole)
    before.pop(f'{VIDEOS:07d}.array_record', None)  # of text.mkv, without clips
    made = states(map(Path, list_shards(output))).values()
    assert {time for time, _ in made} >= {time for time, _ in before.values()}


def test_sigterm_to_one_process_ends_all_and_three_continue(source, whole, tmp_path):
    output = tmp_path / 'out'
    started = start(source, output, 2)
    await_shards(output, started, 2)
    started[1].send_signal(signal.SIGTERM)
    codes, _, errors = wait(started)
    assert codes == [PREEMPTED] * 2 and 'with exit code 75' in errors[0] and 'terminated' in errors[1], errors
    codes, *_ = wait(start(source, output, 3))
    assert codes == [prepare.SKIPPED] * 3
    assert_same(output, whole)


def test_what_one_process_cannot_do_ends_all(source, tmp_path):
    output = tmp_path / 'out'
    codes, _, errors = wait(start(source, output, 2, '--dry-run=2'))
    assert codes == [2, 2] and all('--dry-run: is for one process, and this job has 2' in error for error in errors)
    # The second one has no input.
    codes, _, errors = wait(start(source, output, 2, second=f'--input={tmp_path}/none'))
    assert codes == [2, 2] and '--input=' in errors[1] and 'does not exist' in errors[1], errors
    assert 'has ended on' in errors[0] and 'with exit code 2' in errors[0]
    assert not list(output.glob('clips*'))
