"""The captioned data set in the package: a named object that moves over a landscape.

A clip is a `Scene`: one of 20 objects, one of 8 motions, one of 6 landscapes, and a position. Record i of a
split is a function of (seed, split, i) alone; only the art is on disk (Noto Emoji, Apache-2.0: see
embedded/sprites_NOTICE; `launch/make_sprites.py` made the sheet).

The splits share no combination. With object o of 20, round r of 6, the held-out ones are

  (object o, motion (3 o + 5 r) mod 8, landscape (o + r) mod 6)                                       (1)

so that every object is held out once over each landscape, with six of its motions, and any 20 consecutive ones contain
every object. The other 840 are for training, among them every pair of object and motion, object and
landscape, motion and landscape.
"""

import dataclasses
import itertools
import math
from typing import Literal

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.data.shards.records import Record
from fv_jax.data.synthetic import sprite_drawing

# Its name in captions, and in the set of icons.
OBJECTS = {
    'ladybug': 'lady-beetle',
    'butterfly': 'butterfly',
    'frog': 'frog',
    'panda': 'panda',
    'pig': 'pig-face',
    'lion': 'lion',
    'penguin': 'penguin',
    'crab': 'crab',
    'pineapple': 'pineapple',
    'pumpkin': 'jack-o-lantern',
    'mushroom': 'mushroom',
    'doughnut': 'doughnut',
    'soccer ball': 'soccer-ball',
    'star': 'star',
    'purple heart': 'purple-heart',
    'umbrella': 'umbrella',
    'robot': 'robot',
    'rocket': 'rocket',
    'red car': 'automobile',
    'balloon': 'balloon',
}

# A motion's direction (down, right), and how else it is called.
MOTIONS = {
    'left to right': ((0, 1), 'to the right'),
    'right to left': ((0, -1), 'to the left'),
    'bottom to top': ((-1, 0), 'up'),
    'top to bottom': ((1, 0), 'down'),
    'top left to bottom right': ((1, 1), 'down and to the right'),
    'bottom right to top left': ((-1, -1), 'up and to the left'),
    'bottom left to top right': ((-1, 1), 'up and to the right'),
    'top right to bottom left': ((1, -1), 'down and to the left'),
}

# The name of a landscape in `sprite_drawing`, and in captions.
BACKGROUNDS = {
    'beach': 'a beach',
    'meadow': 'a meadow',
    'town': 'a town at night',
    'sea': 'the sea',
    'desert': 'a desert',
    'mountains': 'snowy mountains',
}

Split = Literal['train', 'heldout']
Combination = tuple[str, str, str]  # object, motion, background

PREVIEW, FINAL = (17, 128, 192), (17, 512, 768)  # frames, height, width of the small weights
FPS = 8.0

# The names of the sources, and their default numbers of clips.
WHOLE, GRID, CROPS = 'sprites', 'grid_sprites', 'sprite_crops'
TRAIN_CLIPS, HELDOUT_CLIPS = 4096, 120

CANONICAL = '{thing} moves from {motion} over {place}'
PARAPHRASES = (
    '{thing} moving from {motion} over {place}',
    '{thing} moves {direction} over {place}',
    '{thing} glides {direction} above {place}',
    'over {place}, {thing} moves from {motion}',
    'above {place}: {thing} that moves {direction}',
)
_PARAPHRASED = 0.5  # of the training captions
_ASPECT = FINAL[2] / FINAL[1]
_CELLS = 8  # of a grid, in an image height: the patches of a preview
_GRID_SIZE = 0.4  # of a sprite on a grid, in image heights
_MARGIN, _PATH = 2, 4  # cells between the border and a centre at least, and from the first frame to the last


@dataclasses.dataclass(frozen=True)
class Scene:
    """The description of a clip; lengths in image heights.

    Attributes:
      object, motion, background: keys of OBJECTS, MOTIONS and BACKGROUNDS.
      size: side of the sprite's art.
      start, end: (y, x) of the sprite's centre in the first and in the last frame; the motion is linear.
      details: seed of the landscape's details.
    """

    object: str
    motion: str
    background: str
    size: float
    start: tuple[float, float]
    end: tuple[float, float]
    details: int

    @property
    def caption(self) -> str:
        """The canonical caption, the prompt of a held-out scene: 'a ladybug moves from left to right over a beach'."""
        return self.format_caption(CANONICAL)

    def format_caption(self, pattern: str) -> str:
        """Formats the caption in the words of CANONICAL or of one of PARAPHRASES."""
        article = 'an' if self.object[0] in 'aeiou' else 'a'
        return pattern.format(
            thing=f'{article} {self.object}',
            motion=self.motion,
            direction=MOTIONS[self.motion][1],
            place=BACKGROUNDS[self.background],
        )

    def centres(self, frames: int) -> np.ndarray:
        """Computes the sprite's centre (y, x) in each frame, (frames, 2)."""
        return np.linspace(self.start, self.end, frames)


def heldout_combinations() -> list[Combination]:
    """Returns the 120 combinations of (1), round after round."""
    objects, motions, backgrounds = list(OBJECTS), list(MOTIONS), list(BACKGROUNDS)
    return [
        (objects[o], motions[(3 * o + 5 * r) % len(motions)], backgrounds[(o + r) % len(backgrounds)])
        for r in range(len(backgrounds))
        for o in range(len(objects))
    ]


def train_combinations() -> list[Combination]:
    """Returns all combinations that are not held out."""
    heldout = set(heldout_combinations())
    return [c for c in itertools.product(OBJECTS, MOTIONS, BACKGROUNDS) if c not in heldout]


def sample_scene(combination: Combination, rng: np.random.Generator, aspect: float = _ASPECT) -> Scene:
    """Draws a scene of a combination.

    The sprite stays in the image except for a twentieth of its size at most. It moves in a straight line, near the
    middle of the room that this leaves, at most 0.75 image heights: 6 pixels a frame of the preview, 24 a frame of its
    latents.

    Args:
      combination: object, motion and background.
      rng: draws size and position.
      aspect: width / height of the image.
    """
    direction = MOTIONS[combination[1]][0]
    size = rng.uniform(0.35, 0.43)
    room = np.array([1 - 0.9 * size, aspect - 0.9 * size])
    angle = math.atan2(*direction) + rng.uniform(-0.1, 0.1)
    along = np.array([math.sin(angle), math.cos(angle)])
    longest = (room / np.maximum(np.abs(along), 1e-9)).min()
    path = along * min(longest, 0.75) * rng.uniform(0.8, 1)
    middle = np.array([0.5, aspect / 2])
    # It stays near the middle of its path, so that it starts on the side that the caption names.
    loose = np.where(np.array(direction) == 0, 0.5, 0.25)
    middle = middle + (room - np.abs(path)) * loose * rng.uniform(-1, 1, 2)
    ends = (tuple(float(c) for c in middle + sign * path / 2) for sign in (-1, 1))
    return Scene(*combination, float(size), *ends, int(rng.integers(2**31)))


def sample_grid_scene(combination: Combination, rng: np.random.Generator, aspect: float = _ASPECT) -> Scene:
    """Draws a scene of a combination in which a sprite looks alike in all positions: a set that little training needs.

    All sprites have one size. Their centres in the latent frames of a preview lie on a grid with the distance of its
    patches, an eighth of the image height: along each axis of its motion a sprite moves one patch a latent frame, 4
    pixels a frame of 128 rows.

    Args:
      combination: object, motion and background.
      rng: draws the position.
      aspect: width / height of the image, at least 1.
    """
    start, end = [], []
    for sign, cells in zip(MOTIONS[combination[1]][0], (_CELLS, round(_CELLS * aspect)), strict=True):
        middle = cells // 2
        first = middle - _PATH // 2 if sign else middle
        room = first - _MARGIN
        loose = min(1, room) if sign else room  # it starts on the side that the caption names
        low = int(rng.integers(first - loose, first + loose + 1))
        begin = low + _PATH if sign < 0 else low
        start.append(begin / _CELLS)
        end.append((begin + sign * _PATH) / _CELLS)
    return Scene(*combination, _GRID_SIZE, tuple(start), tuple(end), int(rng.integers(2**31)))


def draw_scene(scene: Scene, size: tuple[int, int, int], art: np.ndarray | None = None) -> np.ndarray:
    """Renders a scene as uint8 FHWC.

    Args:
      scene: in image heights: a wider image shows more to the right.
      size: (frames, height, width). The preview and the final size of one scene show the same.
      art: of `load_art`, to avoid loading it for each scene; None loads it.
    """
    art = load_art() if art is None else art
    rng = np.random.default_rng(scene.details)
    backdrop = sprite_drawing.draw_landscape(scene.background, rng, size[1:])
    sprite = art[list(OBJECTS).index(scene.object)]
    return sprite_drawing.draw_moving_sprite(backdrop, sprite, scene.centres(size[0]), scene.size)


def load_art() -> np.ndarray:
    """Loads the art of all OBJECTS, in their order: see `sprite_drawing`."""
    return sprite_drawing.load_art(len(OBJECTS))


class SpriteClips:
    """Records of rendered clips, by index: `video` (uint8 FHWC), `caption` and the scene's names.

    Args:
      split: 'train' draws combinations at random and paraphrases half of its captions; 'heldout' goes through its
        combinations in order, with canonical captions.
      count: the number of clips; beyond 120, held-out ones repeat the combinations at other positions.
      size: (frames, height, width) of every clip.
      seed: of the scenes.
      smallest_height: if given, the height of a clip is drawn between this and that of `size`, its width in proportion,
        log-uniformly, so that crops show sprites small and large.
      crop: (height, width) of a crop in which the sprite is at some time; None is whole clips.
      grid: whether scenes are those of `sample_grid_scene`.
    """

    def __init__(
        self,
        split: Split,
        count: int,
        size: tuple[int, int, int] = FINAL,
        *,
        seed: int = 0,
        smallest_height: int | None = None,
        crop: tuple[int, int] | None = None,
        grid: bool = False,
    ):
        require(count >= 1, f'{count} clips of sprites: must be at least 1', ConfigError)
        if 2 * size[2] < size[1]:
            raise ConfigError(f'height={size[1]}, width={size[2]}: sprites need a width of at least half the height')
        self._key = (seed, ('train', 'heldout').index(split))
        self._combinations = train_combinations() if split == 'train' else heldout_combinations()
        self._split, self._count, self._size, self._smallest, self._crop = split, count, size, smallest_height, crop
        self._sample_scene = sample_grid_scene if grid else sample_scene
        self._art = load_art()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        scene, caption, size = self._sample(int(index))
        video = draw_scene(scene, size, self._art)
        if self._crop is not None:
            video = _crop_sprite(video, scene, self._crop, np.random.default_rng([*self._key, index, 1]))
        frames, height, width = video.shape[:3]
        return {
            'video': video,
            'fps': FPS,
            'frames': frames,
            'height': height,
            'width': width,
            'source': 'sprites',
            'caption': caption,
            'object': scene.object,
            'motion': scene.motion,
            'background': scene.background,
        }

    def scene(self, index: int) -> Scene:
        """Returns the scene of record `index`, without drawing it."""
        return self._sample(int(index))[0]

    def caption(self, index: int) -> str:
        """Returns the caption of record `index`, without drawing it."""
        return self._sample(int(index))[1]

    def size(self, index: int) -> tuple[int, int, int]:
        """Returns (frames, height, width) of record `index` before it is cropped."""
        return self._sample(index)[2]

    def _sample(self, index: int) -> tuple[Scene, str, tuple[int, int, int]]:
        if not 0 <= index < self._count:
            raise IndexError(f'clip {index} of {self._count}')
        rng = np.random.default_rng([*self._key, index])
        pick = rng.integers(len(self._combinations)) if self._split == 'train' else index % len(self._combinations)
        scene = self._sample_scene(self._combinations[pick], rng, self._size[2] / self._size[1])
        pattern = CANONICAL
        if self._split == 'train' and rng.random() < _PARAPHRASED:
            pattern = PARAPHRASES[rng.integers(len(PARAPHRASES))]
        frames, height, width = self._size
        if self._smallest is not None:
            drawn = round(self._smallest * (height / self._smallest) ** rng.random())
            height, width = drawn, math.ceil(width * drawn / height)
        return scene, scene.format_caption(pattern), (frames, height, width)


def _crop_sprite(video_FHWC: np.ndarray, scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Crops a clip to (height, width), at a place where the sprite's centre is in the crop in a random frame."""
    sides = np.array(video_FHWC.shape[1:3])
    centre = scene.centres(len(video_FHWC))[rng.integers(len(video_FHWC))] * sides[0]
    corner = np.clip(np.rint(centre - rng.random(2) * size), 0, sides - size).astype(int)
    return video_FHWC[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def is_name(name: str) -> bool:
    """Returns whether `open_source` accepts this name."""
    return name.partition(':')[0] in (WHOLE, GRID, CROPS)


def open_source(name: str, size: tuple[int, int, int], *, heldout: bool) -> SpriteClips:
    """Opens the sprites that a data configuration names.

    Args:
      name: 'sprites': whole scenes of `size`, for training with captions (do not mirror or crop those).
        'grid_sprites': the same, of `sample_grid_scene`.
        'sprite_crops': for a VAE; in training crops of `size`, around the sprite, of clips of all heights from the
        preview's to the largest. Each may give a number of clips: 'sprites:500'.
      size: (frames, height, width) of the training clips.
      heldout: whether to open the held-out split.

    Raises:
      ConfigError: an invalid number of clips.
    """
    kind, colon, text = name.partition(':')
    count = HELDOUT_CLIPS if heldout else TRAIN_CLIPS
    if colon:
        if not text.isdecimal():
            raise ConfigError(f'{name}: expected a number of clips after the colon, like {kind}:{count}')
        count = int(text)
    split = 'heldout' if heldout else 'train'
    if kind != CROPS or heldout:
        return SpriteClips(split, count, size, grid=kind == GRID)
    smallest = max(PREVIEW[1], size[1], math.ceil(size[2] / _ASPECT))
    largest = max(FINAL[1], smallest)
    whole = max(FINAL[0], size[0]), largest, math.ceil(largest * _ASPECT)
    return SpriteClips(split, count, whole, smallest_height=smallest, crop=size[1:])
