"""For every test: the CPU (unless the environment requests a device), no silent broadcasting between ranks, and fast
compilation, which takes most of the time of the tests:

* Programs are compiled with few optimizations, by XLA's earlier emitters. They run slower, which is negligible at these
  sizes; no tolerance is wider for it. With JAX_DISABLE_MOST_OPTIMIZATIONS=false, as launch/check.sh runs tests/parity,
  they are compiled as usual.
* What one test compiles, no other test compiles again. The cache is a folder of this run of pytest, shared by its
  workers, empty at its start and deleted at its end, so that no test depends on an earlier run. Commands that
  tests start have another cache there: one that is killed may leave an incomplete entry.
* Garbage collection is rare: traversing all objects of JAX took a fifth of the time.

Ctrl-C, which background jobs of a shell ignore, reaches the processes that tests start.
"""

import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')

import jax
import pytest

from fv_jax.core import console
from tests import compiling, scheduling

if os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] != 'false':
    os.environ['XLA_FLAGS'] = f'{compiling.QUICKLY} {os.environ.get("XLA_FLAGS", "")}'
gc.freeze()
gc.set_threshold(50_000, 20, 50)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, 'workerinput'):
        folder = config.workerinput['compiled']
    else:
        folder = config.compiled = tempfile.mkdtemp(prefix='fv_jax_compiled_')
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    jax.config.update('jax_compilation_cache_dir', folder)
    os.environ['FV_JAX_CACHE'] = f'{folder}/of_commands'


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """A hook of pytest-xdist: passes the cache folder to a worker."""
    node.workerinput['compiled'] = node.config.compiled


@pytest.fixture(autouse=True)
def keep_policy() -> Iterator[None]:
    """Fails a test that changes the scheduling policy of what runs after it."""
    before = scheduling.get_policy()
    yield
    assert scheduling.get_policy() == before, 'see tests/scheduling.py'


@pytest.fixture(scope='module')
def vae_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small VAE with random parameters."""
    from tests.sampling import tiny  # imports the networks, which most tests do without

    path = tmp_path_factory.mktemp('vae') / 'vae.safetensors'
    tiny.save_vae(path)
    return path


class _Lines(console.StdoutHandler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """What a command would show of the records that a test makes without one; it grows."""
    logger, handler = logging.getLogger(console.PACKAGE), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)
