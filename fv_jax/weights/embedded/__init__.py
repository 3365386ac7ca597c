"""The embedded weights, in 16 bits: a small VAE, trained by `configs/vae.py:tiny_motion_whole`, and both small stages.

The stages were trained by `configs/stage1.py:tiny` and `configs/stage2.py:tiny_mixed` and written by
`python -m fv_jax.export`.
"""

from pathlib import Path

_HERE = Path(__file__).parent
VAE_TINY = _HERE / 'vae_tiny.safetensors'
STAGES_TINY = (_HERE / 'stage1_tiny.safetensors', _HERE / 'stage2_tiny.safetensors')


def stages() -> list[Path]:
    """Returns the files of the small stages. Raises FileNotFoundError if this version has none."""
    if missing := [path.name for path in STAGES_TINY if not path.is_file()]:
        raise FileNotFoundError(
            f"'embedded': this version has no {' and '.join(missing)}; name a folder of checkpoints or of "
            'official files'
        )
    return list(STAGES_TINY)
