"""Compiles programs in a thread while weights are read, as both take minutes at full size."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax

T = TypeVar('T')


def read_while_compiling(read: Callable[[], T], lower: Callable[[], Iterable[jax.stages.Lowered]]) -> T:
    """Reads weights while programs are compiled into the compilation cache, from which their jitted calls take them.

    Without such a cache, which a program that imports this package may not want, it only reads.

    Args:
      read: reads the weights.
      lower: lowers the programs.

    Returns:
      What `read` returns.

    Raises:
      Exception: of `read`, or else of the compiler.
    """
    if jax.config.jax_compilation_cache_dir is None:
        return read()
    errors: list[Exception] = []

    def compile_programs() -> None:
        try:
            for lowered in lower():
                lowered.compile()
        except Exception as error:
            errors.append(error)

    # A daemon: weights that cannot be read are reported at once.
    thread = threading.Thread(target=compile_programs, name='compile', daemon=True)
    thread.start()
    found = read()
    thread.join()
    if errors:
        raise errors[0]
    return found
