"""How a video came about: all that is needed to make it again. A record is written into the mp4 (as JSON, in its
comment) and beside stored latents.
"""

import dataclasses
import json

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import parse_json
from fv_jax.data.video.video_io import DEFAULT_CRF
from fv_jax.models.layers import DtypeName
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.text.encoder import TextConfig

FPS = 8.0  # of the official videos
_KEY = 'fv_jax'


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the weights were, as the user named them.

    official: a folder of official files. checkpoints: folders, or 'embedded'; steps: of each run in them.
    dtype: of the official networks. text: the text encoder, where it was chosen by hand.
    """

    official: str | None = None
    checkpoints: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    dtype: DtypeName = 'bfloat16'
    text: TextConfig | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Digests of what a stage ran with; text: '' without an encoder."""

    network: str
    vae: str
    text: str


@dataclasses.dataclass(frozen=True)
class Previewed:
    """Stage 1's part."""

    prompt: str
    seed: int
    settings: PreviewSettings
    weights: Weights


@dataclasses.dataclass(frozen=True)
class Enhanced:
    """Stage 2's part."""

    seed: int
    settings: EnhanceSettings
    weights: Weights


@dataclasses.dataclass(frozen=True)
class Record:
    """version: of fv_jax. fps, crf: of the mp4."""

    version: str
    origin: Origin
    preview: Previewed
    enhance: Enhanced | None = None
    fps: float = FPS
    crf: float = DEFAULT_CRF

    def to_json(self) -> str:
        """One line of ASCII."""
        return json.dumps({_KEY: config_lib.to_dict(self)}, sort_keys=True)


def from_json(text: str) -> Record:
    """The record that `to_json` wrote. Raises ValueError: it is none, or one of another version with other fields."""
    try:
        values = parse_json(text)
    except ValueError:
        values = None
    require(isinstance(values, dict) and _KEY in values, 'holds no record of how it was made')
    found = values[_KEY]
    version = found.get('version') if isinstance(found, dict) else None
    try:
        return config_lib.build(Record, found, 'record')
    except (ConfigError, AttributeError, TypeError) as error:
        raise ValueError(f'its record was made by fv_jax {version} and cannot be read here ({error})') from None
