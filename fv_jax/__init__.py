"""fv_jax: FlashVideo in JAX. Text to 1080p video in two stages, trained and sampled on TPU, GPU or CPU.

"model guide" in docstrings and comments is `fv_jax/models/README.md`, by section.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fv_jax.api import FlashVideo, open_run

__version__ = '0.1.0'
__all__ = ['FlashVideo', 'open_run']


def __getattr__(name: str) -> Any:
    """Imports `fv_jax.FlashVideo` and `fv_jax.open_run` when they are first used; all else is its own import."""
    if name in __all__:
        from fv_jax import api

        return getattr(api, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
