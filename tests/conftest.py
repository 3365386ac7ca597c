"""For every test: the CPU (unless the environment asks for a device), no silent broadcasting between ranks, and what
makes the tests quick, most of whose time goes into compiling:

* XLA's CPU compiler works little: LLVM optimizes less, and kernels come from its older emitters, which need 15 ms for a
  small one where the newer ones need 34. What runs slower is too small to show it; no tolerance is wider for it. With
  JAX_DISABLE_MOST_OPTIMIZATIONS=false, as launch/check.sh runs tests/parity, programs are compiled as they are in use.
* What one test compiled, no other one of the same pytest run compiles again, in whichever of its processes: the
  compilation cache is a folder of this run, empty at its start and gone at its end, so that no test passes on what an
  earlier run compiled. Programs that a test starts do not see it: one that is killed would leave half an entry.
"""

import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')

import jax
import pytest

OLDER_EMITTERS = '--xla_cpu_use_fusion_emitters=false'
# XLA reads its flags when it first compiles; workers of pytest-xdist and programs that tests start inherit them.
if jax.config.values['jax_disable_most_optimizations'] and OLDER_EMITTERS not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {OLDER_EMITTERS}'.strip()

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def pytest_configure(config: pytest.Config) -> None:
    # A worker of pytest-xdist is told the folder by the process that started it.
    told = getattr(config, 'workerinput', {}).get('compiled')
    folder = told or tempfile.mkdtemp(prefix='fv_jax_compiled_')
    jax.config.update('jax_compilation_cache_dir', folder)
    if not told:
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput['compiled'] = jax.config.jax_compilation_cache_dir
