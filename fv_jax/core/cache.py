"""JAX's compilation cache, in the user's cache folder."""

import hashlib
import logging
import os
import platform
import shutil
import time
from pathlib import Path

import jax

from fv_jax.core.cache_folder import (
    COMPILED,
    FOLDER_LOCK,
    GB,
    make_cache_folder,
    read_limit,
    total_size,
    trim,
)
from fv_jax.core.files import format_bytes

log = logging.getLogger(__name__)

TRIM_SECONDS = 3600  # between two trims by commands that fetch nothing: listing a cache on NFS can take seconds
MIN_FREE = 0.1 * GB


def use_compilation_cache() -> None:
    """Keeps compiled programs in the cache folder from now on, and the cache within its limit.

    The user's own choice wins (JAX_COMPILATION_CACHE_DIR; JAX_ENABLE_COMPILATION_CACHE=false keeps none). Programs for
    a CPU run only on CPUs with the same instructions, so each kind has its own folder. A cache folder that cannot be
    used is a warning: no command needs compiled programs.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = make_cache_folder()
        read_limit(folder, 0)
        _trim(folder)
    except (OSError, ValueError) as error:
        log.warning(f'compiled programs are not kept: {error}')
        return
    jax.config.update('jax_compilation_cache_dir', str(folder / COMPILED / _cpu()))
    # All programs: of those that compile within JAX's limit of a second there are dozens.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    if (free := shutil.disk_usage(folder).free) < MIN_FREE:
        log.warning(
            f'no more compiled programs are kept: the disk of {folder} has {format_bytes(free)} free; free some of it'
        )
        # JAX would leave an empty file, which hides the program from then on.
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', 2**62)


def _trim(folder: Path) -> None:
    """Trims the cache to its limit, unless a command did so within the last hour."""
    lock = folder / FOLDER_LOCK
    if time.time() - lock.stat().st_mtime < TRIM_SECONDS:
        return
    removed, _ = trim()
    os.utime(lock)
    if removed:
        log.info(
            f'cache {folder}: removed {format_bytes(total_size(removed))}, least recently used first, for its limit'
        )


def _cpu() -> str:
    """Returns the CPU's architecture, and a digest of its instruction sets where they are known."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.machine()
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return f'{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}'
