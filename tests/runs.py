"""Small training runs for the tests of the commands."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

from fv_jax.core import speed
from tests.inference import tiny

ROOT = Path(__file__).parents[1]
TIMING = ('steps_per_s', 'clips_per_s', *speed.NAMES)


def autoencoder(workdir: Path, *more: str) -> list[str]:
    """The smoke config, its network as narrow as it can be."""
    return [
        f'--config={ROOT / "configs" / "vae.py"}:smoke',
        f'--workdir={workdir}',
        '--config.stage.autoencoder_net.base_channels=4',
        '--config.stage.autoencoder_net.multipliers=(1, 1, 1, 1)',
        '--config.stage.autoencoder_net.latent_channels=4',
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
        f'--config.stage.dit.latent_channels={tiny.VAE_CONFIG.latent_channels}',
        '--config.stage.dit.num_layers=1',
        *more,
    ]


def lowres(workdir: Path, vae: Path, *more: str) -> list[str]:
    """The smoke config on the latents of `tiny.save_vae`."""
    return [
        f'--config={ROOT / "configs" / "stage1.py"}:smoke',
        f'--workdir={workdir}',
        f'--config.stage.vae={vae}',
        f'--config.stage.dit.latent_channels={tiny.VAE_CONFIG.latent_channels}',
        '--config.stage.dit.num_layers=1',
        *more,
    ]


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
        # Into plain arrays, wherever they lived: other processes' devices may be gone.
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
