"""Generation metadata: everything that is needed to reproduce a preview or a video.

It is stored in the comment of the mp4, as JSON, and beside stored latents.
"""

import dataclasses
import json

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import parse_json
from fv_jax.data.video.encoding import DEFAULT_CRF, Codec
from fv_jax.data.video.shots import ShotDetector
from fv_jax.models.layers import DtypeName
from fv_jax.sampling.framing import Fit
from fv_jax.sampling.settings import ClipSettings, EnhanceSettings, PreviewSettings
from fv_jax.sampling.windows import Windows
from fv_jax.text.encoder import TextConfig

FPS = 8.0  # of the official videos
_KEY = 'fv_jax'


@dataclasses.dataclass(frozen=True)
class WeightsOrigin:
    """Where the weights were loaded from, as the user named them.

    Attributes:
      official: a folder of official files, or None.
      checkpoints: folders of runs, or 'embedded'.
      steps: the checkpoint step of each run.
      dtype: of the official networks.
      text: the text encoder, if the user chose one.
    """

    official: str | None = None
    checkpoints: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    dtype: DtypeName = 'bfloat16'
    text: TextConfig | None = None


@dataclasses.dataclass(frozen=True)
class WeightDigests:
    """Fingerprints of the networks that a stage ran with; `text` is '' without a text encoder."""

    network: str
    vae: str
    text: str


@dataclasses.dataclass(frozen=True)
class PreviewMetadata:
    """Prompt, seed, settings and weights of stage 1."""

    prompt: str
    seed: int
    settings: PreviewSettings
    weights: WeightDigests


@dataclasses.dataclass(frozen=True)
class EnhanceMetadata:
    """Seed, settings and weights of stage 2."""

    seed: int
    settings: EnhanceSettings
    weights: WeightDigests


@dataclasses.dataclass(frozen=True)
class ClipMetadata:
    """The clip that was enhanced.

    Attributes:
      name: of its file; '' for frames in memory.
      window, overlap: of its windows, in frames.
      shots, shot_threshold, color_fix, fit: as in `ClipSettings`; the defaults are those of files of earlier
        versions, which took a clip as one shot and stretched it.
    """

    name: str
    window: int
    overlap: int
    shots: ShotDetector = 'none'
    shot_threshold: float | None = None
    color_fix: bool = False
    fit: Fit | None = None

    @classmethod
    def create(cls, name: str, windows: Windows, settings: ClipSettings) -> 'ClipMetadata':
        """Returns the metadata of a clip that is enhanced with these settings."""
        chosen = dataclasses.asdict(settings) | {'overlap': windows.overlap}
        return cls(name, windows.frames, **chosen)


@dataclasses.dataclass(frozen=True)
class GenerationMetadata:
    """Everything that determines the frames of an mp4, except for those of an enhanced clip.

    Attributes:
      version: of fv_jax.
      origin: where the weights were loaded from.
      preview: what stage 1 sampled; None for an enhanced clip.
      enhance: what stage 2 sampled; None for a preview.
      clip: what was enhanced; None where it was a preview.
      fps: frames per second of the mp4.
      crf, codec: rate factor and codec of the mp4.
    """

    version: str
    origin: WeightsOrigin
    preview: PreviewMetadata | None = None
    enhance: EnhanceMetadata | None = None
    clip: ClipMetadata | None = None
    fps: float = FPS
    crf: float = DEFAULT_CRF
    codec: Codec = 'h264'

    def to_json(self) -> str:
        """Serializes the metadata to JSON, one line of ASCII."""
        return json.dumps({_KEY: config_lib.to_dict(self)}, sort_keys=True)


def from_json(text: str) -> GenerationMetadata:
    """Parses what `to_json` wrote.

    Raises:
      ValueError: the text is no such JSON, or another version of fv_jax wrote other fields.
    """
    try:
        values = parse_json(text)
    except ValueError:
        values = None
    require(isinstance(values, dict) and _KEY in values, 'contains no generation metadata')
    found = values[_KEY]
    version = found.get('version') if isinstance(found, dict) else None
    try:
        return config_lib.build(GenerationMetadata, found, 'metadata')
    except (ConfigError, AttributeError, TypeError) as error:
        raise ValueError(
            f'its generation metadata was written by fv_jax {version} and cannot be read here ({error})'
        ) from None
