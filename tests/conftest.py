"""For every test: the CPU (unless the environment asks for a device), no silent broadcasting between ranks, and no
compilation cache on disk, so that a test never passes on what an earlier run compiled.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
