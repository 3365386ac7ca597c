"""Prints the requests and bytes of a run in a bucket: of its start, a save, a resume and 1,000 steps.

    python -m tests.storage.request_table

The run is stage 2's smoke config on a local server. Requests do not depend on the size of the arrays up to some
hundred MB; for larger ones each process writes more files.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests import runs
from tests.sampling import tiny
from tests.storage import servers
from tests.storage.buckets import make_bucket
from tests.storage.faults import Request
from tests.storage.proxy import Proxy

NUM_STEPS, SAVE_EVERY = 1000, 500
WRITES = 'upload', 'copy', 'delete', 'batch'


def train(arguments: Sequence[str], environment: dict[str, str], proxy: Proxy) -> tuple[list[Request], list[Request]]:
    """Runs the command; returns the requests before its first step, and the others."""
    proxy.reset()
    before = 0
    with runs.start(arguments, environment) as process:
        for line in process.stdout:
            if not before and line.startswith('step '):
                before = len(proxy.requests)
        error = process.stderr.read()
    assert process.returncode == 0, error
    return proxy.requests[:before], proxy.requests[before:]


def format_row(name: str, requests: Iterable[Request], divisor: int = 1) -> str:
    """Formats a row of the table."""
    requests = list(requests)
    writes = sum(request.call.kind in WRITES for request in requests)
    up, down = (sum(getattr(request, way) for request in requests) / divisor / 1e6 for way in ('up', 'down'))
    return f'| {name} | {len(requests) / divisor:.0f} | {writes / divisor:.0f} | {up:.2f} | {down:.2f} |'


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        servers.gcs_server() as server,
        Proxy(server) as proxy,
        make_bucket(proxy, 'bucket') as bucket,
    ):
        folder = Path(name)
        tiny.save_vae(folder / 'vae.safetensors')
        environment = runs.environment(folder / 'compiled') | bucket.environment
        loop = {'num_steps': NUM_STEPS, 'save_every': SAVE_EVERY, 'eval_every': 0, 'max_to_keep': 1}
        flags = [f'--config.loop.{field}={value}' for field, value in loop.items()]
        arguments = runs.superres(f'{bucket.url}/run', folder / 'vae.safetensors', *flags, '--config.data.cache=none')
        start, steps = train(arguments, environment, proxy)
        size = sum(bytes for file, bytes in bucket.sizes().items() if '/checkpoints/' in file)
        resume, _ = train([*arguments, f'--config.loop.num_steps={NUM_STEPS + 1}'], environment, proxy)
    lock = [request for request in steps if request.call.name.endswith('run.lock')]
    metrics = [request for request in steps if request.call.name.startswith(('run/metrics', 'run/tensorboard'))]
    saves = [request for request in steps if request not in lock and request not in metrics]
    print(f'A checkpoint has {size / 1e6:.2f} MB.\n')
    print('| | requests | of them writes | MB up | MB down |\n| --- | --- | --- | --- | --- |')
    print(format_row('start of a new run', start))
    print(format_row('resume', resume))
    print(format_row('save, with the removal of an old checkpoint', saves, NUM_STEPS // SAVE_EVERY))
    print(format_row(f'lock, for {NUM_STEPS} steps', lock))
    print(format_row(f'metrics, for {NUM_STEPS} steps', metrics))
    print(format_row(f'{NUM_STEPS} steps with {NUM_STEPS // SAVE_EVERY} saves', steps))


if __name__ == '__main__':
    main()
