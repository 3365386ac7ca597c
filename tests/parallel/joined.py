"""A small run of stage 2, joined over gloo where it has several processes."""

import subprocess
from pathlib import Path

import numpy as np

from tests import runs
from tests.sampling import tiny

DEVICES = 4
# Of four processes, two share the tokens of a row and must read the same rows.
RUN = (
    '--config.parallel.data=2',
    '--config.parallel.context=2',
    '--config.data.loader.batch_size=2',
    '--config.loop.num_steps=2',
    '--config.loop.save_every=2',
    # Large, or Adam, which divides by a gradient's size, makes much of the last bit of the small ones.
    '--config.optim.eps=1.0',
)


def start(arguments: list[str], processes: int) -> list[subprocess.Popen]:
    """Starts the command in several processes."""
    environment = runs.environment(devices=DEVICES // processes)
    if processes == 1:
        return [runs.start(arguments, environment)]
    return runs.start_several(arguments, environment, processes)


def train(arguments: list[str], processes: int) -> list[list[str]]:
    """Runs the command in several processes; returns the lines that each of them wrote."""
    started = start(arguments, processes)
    try:
        output = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, err) in zip(started, output, strict=True):
        assert process.returncode == 0, err
    return [[line for line in out.splitlines() if line and not filter_gloo_log(line)] for out, _ in output]


def filter_gloo_log(line: str) -> bool:
    """Returns whether a line is of Gloo, whose threads interleave their lines."""
    return '[Gloo]' in line or 'peer ranks' in line


def assert_trains_like_one(folder: Path, processes: int) -> None:
    """A run of several processes has the metrics and arrays of a run of one."""
    tiny.save_vae(folder / 'vae.safetensors')

    def run(processes: int) -> tuple[Path, list[list[str]]]:
        workdir = folder / f'of_{processes}'
        return workdir, train(runs.superres(workdir, folder / 'vae.safetensors', *RUN), processes)

    (one, _), (workdir, (first, *others)) = run(1), run(processes)
    assert '4 cpu device(s) (data 2, context 2)' in first[2] and 'saved step 2' in first
    assert others == [[]] * (processes - 1)
    rows, expected = runs.rows(workdir), runs.rows(one)
    assert [row.keys() for row in rows] == [row.keys() for row in expected] and len(rows) == 4
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    numbers, expected = runs.arrays(workdir, 2), runs.arrays(one, 2)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max() or 1
        np.testing.assert_allclose(numbers[name] / scale, value / scale, atol=1e-5, err_msg=name)
