"""fv_jax: FlashVideo in JAX. Text to 1080p video in two stages, trained and sampled on TPU, GPU or CPU."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fv_jax.api import FlashVideo

__version__ = '0.1.0'
__all__ = ['FlashVideo']


def __getattr__(name: str) -> Any:
    """`fv_jax.FlashVideo`, imported when it is first asked for: everything else is an import of its own."""
    if name == 'FlashVideo':
        from fv_jax.api import FlashVideo

        return FlashVideo
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
