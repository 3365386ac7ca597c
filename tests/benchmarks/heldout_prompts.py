"""Prompts of scenes that were not in training, and their truth."""

from fv_jax.core.checks import require
from fv_jax.data.synthetic.sprites import FINAL, Scene, SpriteClips, heldout_combinations


def heldout_prompts(count: int, *, seed: int = 0) -> list[Scene]:
    """The first `count` held-out scenes, those of SpriteClips('heldout', ...). `.caption` is the prompt; `draw` gives
    the truth at any size of 2:3. Raises ValueError for more than there are held-out combinations.
    """
    available = len(heldout_combinations())
    require(1 <= count <= available, f'count={count}: there are 1 to {available} held-out combinations')
    clips = SpriteClips('heldout', count, FINAL, seed=seed)
    return [clips.scene(i) for i in range(count)]
