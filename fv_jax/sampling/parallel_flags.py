"""Flags of the mesh that commands sample on, `--parallel.FIELD=VALUE`."""

import contextlib
from collections.abc import Iterator, Sequence

from fv_jax.core.command_line import Override, override_settings
from fv_jax.core.config import ConfigError
from fv_jax.parallel.mesh import ParallelConfig
from fv_jax.sampling.sampling_mesh import DEFAULT_AXES

PARALLEL = 'parallel'  # the group of the flags
HELP = 'All devices are used; --parallel.FIELD=VALUE sets an axis of their mesh.'


def read_parallel(overrides: Sequence[Override]) -> ParallelConfig | None:
    """Returns the axes that the flags set, with the remaining devices along fsdp; None without any flag."""
    return override_settings(DEFAULT_AXES, PARALLEL, overrides) if overrides else None


@contextlib.contextmanager
def name_flags() -> Iterator[None]:
    """A context in which errors of the mesh, a part of the configuration of a run, name these flags."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace('config.parallel', PARALLEL)) from None
