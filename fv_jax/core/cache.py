"""The one cache folder of a user: compiled programs, and copies of remote data."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import platformdirs

VARIABLE = 'FV_JAX_CACHE'


def cache_folder() -> Path:
    """Returns $FV_JAX_CACHE, or else `fv_jax` in the user's cache folder (~/.cache on Linux). It may not exist yet."""
    return Path(os.environ.get(VARIABLE) or platformdirs.user_cache_dir('fv_jax')).expanduser()


def use_compilation_cache() -> None:
    """Keeps compiled programs in the cache folder from now on.

    The user's own choice wins (JAX_COMPILATION_CACHE_DIR; JAX_ENABLE_COMPILATION_CACHE=false keeps none). Programs for
    a CPU run only on CPUs with the same instructions, so each kind has its own folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled' / _cpu()))
        # All programs: of those that compile within JAX's limit of a second there are dozens.
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _cpu() -> str:
    """Returns the CPU's architecture, and a digest of its instruction sets where they are known."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.machine()
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return f'{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}'
