"""The embedded clips: excerpts of Big Buck Bunny at 256x480, 24 frames per second.

Training shots (17 frames each) and, from views that no training shot shows, held-out shots (33 frames each).
`configs/prepare.py:embedded` says which, and how to make them again. Big Buck Bunny is (c) 2008 Blender Foundation,
CC BY 3.0: see NOTICE beside this file.
"""

from pathlib import Path

from fv_jax.data.shards.shard_files import list_shards

_FOLDER = Path(__file__).parent


def train_shards() -> list[str]:
    """Returns the paths of the shards of training shots."""
    return list_shards(_FOLDER, 'train')


def heldout_shards() -> list[str]:
    """Returns the paths of the shards of held-out shots."""
    return list_shards(_FOLDER, 'heldout')
