"""For every test: the CPU (unless the environment asks for a device), no silent broadcasting between ranks, and what
makes the tests quick, most of whose time goes into compiling:

* Programs that are optimized little, by XLA's emitters of before. What runs slower is too small to show it; no
  tolerance is wider for it. With JAX_DISABLE_MOST_OPTIMIZATIONS=false, as launch/check.sh runs tests/parity, they are
  those that are used.
* What one test compiled, no other one compiles again. The cache is a folder of this run of pytest, shared by its
  workers, empty at its start and gone at its end, so that no test passes on what an earlier run compiled. Commands that
  a test starts have another one there: one that is killed may leave half an entry.
* Garbage is looked for rarely: to walk through all that JAX keeps took a fifth of the time.

And Ctrl-C, which a shell's background jobs ignore, is heard by what a test starts.
"""

import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')

import jax
import pytest

from fv_jax.core import console
from tests import compiling

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
    """Of pytest-xdist: what a worker is told."""
    node.workerinput['compiled'] = node.config.compiled


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
