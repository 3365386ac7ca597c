"""How JAX compiles in the tests, and how many programs."""

import contextlib
from collections.abc import Iterator

import jax.monitoring

# For XLA_FLAGS: the emitters of before, which take half the time to compile. Versions without them pass over it.
QUICKLY = '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters'
# The environment of a process whose programs are compiled as in use: for networks that run longer than they compile.
AS_IN_USE = {'JAX_DISABLE_MOST_OPTIMIZATIONS': 'false', 'XLA_FLAGS': ''}


@contextlib.contextmanager
def compiled() -> Iterator[list[str]]:
    """Yields a list that gets an entry for each program compiled within."""
    events: list[str] = []

    def listen(event: str, duration: float, **kwargs) -> None:
        if event == '/jax/core/compile/backend_compile_duration':
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
