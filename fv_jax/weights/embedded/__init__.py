"""The weights that come with the package, in 16 bits: a small VAE, trained by `configs/vae.py:tiny`, and both small
stages, trained by `configs/stage1.py:tiny` and `configs/stage2.py:tiny_sprites`, as `python -m fv_jax.export` writes a
run in one file.
"""

from pathlib import Path

_HERE = Path(__file__).parent
VAE_TINY = _HERE / 'vae_tiny.safetensors'
STAGES_TINY = (_HERE / 'stage1_tiny.safetensors', _HERE / 'stage2_tiny.safetensors')


def stages() -> list[Path]:
    """The files of the small stages. Raises FileNotFoundError where this version has none."""
    if missing := [path.name for path in STAGES_TINY if not path.is_file()]:
        raise FileNotFoundError(
            f"'embedded': this version comes without {' and '.join(missing)}; name a folder of checkpoints or of "
            'official files'
        )
    return list(STAGES_TINY)
