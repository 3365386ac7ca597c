"""Small training runs for the tests of the commands."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

from tests import compiling
from tests.sampling import tiny

ROOT = Path(__file__).parents[1]
THROUGHPUT = ('tokens_per_s', 'tflops_per_chip', 'mfu', 'roofline_utilization', 'peak_memory_gib')
TIMING = ('steps_per_s', 'clips_per_s', *THROUGHPUT)
LIMIT = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, 2 * ({},))'
TRAIN = 'import sys; from fv_jax import train; sys.exit(train.main(sys.argv[1:]))'


def autoencoder(workdir: Path, *more: str) -> list[str]:
    """The smoke config, its network as narrow as it can be."""
    return [
        f'--config={ROOT / "configs" / "vae.py"}:smoke',
        f'--workdir={workdir}',
        '--config.stage.network.base_channels=4',
        '--config.stage.network.multipliers=(1, 1, 1, 1)',
        '--config.stage.network.num_res_blocks=1',
        '--config.stage.network.latent_channels=4',
        '--config.data.height=16',
        '--config.data.width=16',
        '--config.data.heldout_size=(9, 16, 16)',
        '--config.data.eval_clips=1',
        *more,
    ]


def superres(workdir: Path, vae: Path, *more: str) -> list[str]:
    """The smoke config on the latents of `tiny.save_vae`."""
    return [
        f'--config={ROOT / "configs" / "stage2.py"}:smoke',
        f'--workdir={workdir}',
        f'--config.stage.vae={vae}',
        f'--config.stage.network.latent_channels={tiny.VAE_CONFIG.latent_channels}',
        '--config.stage.network.num_layers=1',
        *more,
    ]


def lowres(workdir: Path, vae: Path, *more: str) -> list[str]:
    """The smoke config on the latents of `tiny.save_vae`."""
    return [
        f'--config={ROOT / "configs" / "stage1.py"}:smoke',
        f'--workdir={workdir}',
        f'--config.stage.vae={vae}',
        f'--config.stage.network.latent_channels={tiny.VAE_CONFIG.latent_channels}',
        '--config.stage.network.num_layers=1',
        *more,
    ]


def environment(compiled: Path | None = None, devices: int = 1) -> dict[str, str]:
    """Of a process of its own. compiled: a folder where it finds what others have compiled."""
    flags = f'{compiling.QUICKLY} --xla_force_host_platform_device_count={devices}'
    found = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true', 'XLA_FLAGS': flags}
    if compiled is not None:
        found |= {
            'JAX_COMPILATION_CACHE_DIR': str(compiled),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
            'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        }
    return found


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    first: str = '',
    largest_file: int | None = None,
    before: Sequence[str] = (),
) -> subprocess.Popen:
    """The training command in a process of its own.

    first: lines of a program that come before it. largest_file: no file may grow beyond these bytes, which is what a
    write to a full disk meets. before: a command that is to run it.
    """
    program = '\n'.join([first, LIMIT.format(largest_file) if largest_file else '', TRAIN])
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    command = [*before, sys.executable, '-c', program, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=dict(environment), **pipes)


def free_port() -> int:
    """Of this machine, for the first process of several."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start_several(
    arguments: Sequence[str], environment: Mapping[str, str], count: int, *, first: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """One run of so many processes, joined over gloo. first: of each of them."""
    port, started = free_port(), []
    for i in range(count):
        join = [f'--coordinator=127.0.0.1:{port}', f'--num-processes={count}', f'--process-id={i}']
        started.append(start([*arguments, *join], environment, first=first[i] if first else ''))
    return started


@contextlib.contextmanager
def shared_compiling(folder: Path) -> Iterator[None]:
    """Within it, what was compiled once is not compiled again: runs of one program come to the same machine code."""
    settings = {
        'jax_compilation_cache_dir': str(folder),
        'jax_persistent_cache_min_compile_time_secs': 0.5,
        'jax_persistent_cache_min_entry_size_bytes': -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def rows(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl without what a clock says."""
    found = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in found if 'goodput/step' not in row]


def losses(workdir: Path) -> dict[int, dict]:
    """step -> row, of training."""
    return {row['step']: row for row in rows(workdir) if 'loss' in row}


def steps(workdir: Path) -> list[int]:
    """The finished checkpoints."""
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every number of a checkpoint by its path, read without our own code."""
    found = {}
    for item in ('state', 'params'):
        path = workdir / 'checkpoints' / str(step) / item
        # As plain arrays, whatever their shardings: the devices of other processes may not exist.
        there = ocp.StandardCheckpointer().metadata(path).item_metadata
        tree = ocp.StandardCheckpointer().restore(path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), there))
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {item + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def assert_same(first: Path, second: Path, step: int) -> None:
    """Bit for bit: parameters, averages, optimizer, step."""
    a, b = arrays(first, step), arrays(second, step)
    assert a.keys() == b.keys() and len(a) > 10
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
