"""A small run of stage 2, joined over gloo where it has several processes."""

import subprocess

from tests import runs

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
    return [[line for line in out.splitlines() if line and not _filter_gloo_log(line)] for out, _ in output]


def _filter_gloo_log(line: str) -> bool:
    """Returns whether a line is of Gloo, whose threads interleave their lines."""
    return '[Gloo]' in line or 'peer ranks' in line
