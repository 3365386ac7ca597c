"""A list of prompts, sampled in several processes that are joined over gloo, beside one process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from fv_jax import sample
from fv_jax.data.video import decoding
from fv_jax.sampling import preview_store
from tests import runs
from tests.parallel.joined import filter_gloo_log
from tests.sampling import tiny

PROMPTS = 'a dog\na cat runs\na horse\n'
SAMPLE = 'import sys; from fv_jax import sample; sys.exit(sample.main(sys.argv[1:]))'


def start(arguments: list[str], processes: int) -> list[subprocess.Popen]:
    """Starts `sample` in several processes, each with one device."""
    port, environment = runs.free_port(), runs.environment()
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    started = []
    for i in range(processes):
        join = [f'--coordinator=127.0.0.1:{port}', f'--num-processes={processes}', f'--process-id={i}']
        command = [sys.executable, '-c', SAMPLE, *arguments, *join]
        started.append(subprocess.Popen(command, cwd=runs.ROOT, env=environment, **pipes))
    return started


def wait(started: list[subprocess.Popen]) -> tuple[list[int], list[list[str]], list[str]]:
    """Returns the exit code, the lines and the errors of each process."""
    try:
        output = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    lines = [[line for line in out.splitlines() if line and not filter_gloo_log(line)] for out, _ in output]
    return [process.returncode for process in started], lines, [err for _, err in output]


def assert_samples_like_one(folder: Path, processes: int, *more: str) -> list[str]:
    """Previews and videos of several processes equal those of one, and the first process alone writes and reports.

    Returns the arguments.
    """
    tiny.save_pipeline_and_vae(folder)
    (folder / 'prompts.txt').write_text(PROMPTS)
    flags = [f'--prompts={folder}/prompts.txt', f'--checkpoint={folder}', '--enhance-all', '--crf=0']
    assert sample.main([*flags, f'--output={folder}/one']) == 0
    joined = [*flags, f'--output={folder}/joined', *more]
    codes, (first, *others), errors = wait(start(joined, processes))
    assert codes == [0] * processes, errors
    assert others == [[]] * (processes - 1)
    assert sum('preview(s) in' in line for line in first) == 1 and f'{processes} cpu device(s)' in first[0]
    assert_same(folder / 'joined', folder / 'one')
    return joined


def assert_continues(folder: Path, joined: list[str], processes: int) -> None:
    """A second call makes only what is missing."""
    (folder / 'joined' / '1' / 'video.mp4').unlink()
    codes, (first, *_), errors = wait(start(joined, processes))
    assert codes == [0] * processes, errors
    assert any('2 of 3 video(s) exist already' in line for line in first)
    assert_same(folder / 'joined', folder / 'one')


def assert_same(joined: Path, one: Path) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.rglob('*'))
    assert sorted(str(path.relative_to(joined)) for path in joined.rglob('*')) == names
    for i in range(len(PROMPTS.splitlines())):
        got, wanted = (preview_store.load(folder / str(i)) for folder in (joined, one))
        np.testing.assert_allclose(got.latents, wanted.latents, atol=1e-3)
        assert json.loads(got.metadata.to_json()) == json.loads(wanted.metadata.to_json())
        frames, expected = (decoding.decode(folder / str(i) / 'video.mp4').frames for folder in (joined, one))
        assert frames.shape == expected.shape and np.abs(frames.astype(int) - expected).mean() < 0.5
