"""What users ask for, and what the server refuses."""

import dataclasses
import json
from typing import Literal

from fv_jax.core import config as config_lib
from fv_jax.core.paths import as_path
from fv_jax.data.images import IMAGE_SUFFIXES
from fv_jax.sampling import preview_store

# A preview of a prompt; the enhancement of a preview; the enhancement of an uploaded clip or image.
Kind = Literal['preview', 'enhance', 'clip']


class NotFoundError(Exception):
    """No job of this user has the name."""


class ConflictError(Exception):
    """The state of a job does not allow what was asked."""


class TooManyError(Exception):
    """A user has as many jobs waiting as are allowed."""


class TooLargeError(Exception):
    """An upload has more bytes, frames or pixels than are allowed."""


class UnsupportedTypeError(Exception):
    """An upload is no video or image that can be read."""


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """What a job makes. A runner fills in size, frames, fps and number of steps (`Runner.complete`).

    Attributes:
      kind: of the job.
      prompt: of a preview, and of what is enhanced from it.
      seed: of the noise.
      size: (height, width) of the result in pixels.
      frames: of the result.
      fps: frames per second of the result; None for an image.
      num_steps: of the sampler.
      source: the id of the preview, or the file name of the upload.
      source_name: the name that the user's file had.
      source_size: (height, width) of the upload in pixels.
      shown_size: of its centre, which the result shows; the rest is cropped.
    """

    kind: Kind
    prompt: str = ''
    seed: int = 0
    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None
    num_steps: int | None = None
    source: str | None = None
    source_name: str | None = None
    source_size: tuple[int, int] | None = None
    shown_size: tuple[int, int] | None = None

    @property
    def is_image(self) -> bool:
        """Whether an image is enhanced."""
        return self.kind == 'clip' and as_path(self.source).suffix.lower() in IMAGE_SUFFIXES

    @property
    def result(self) -> str:
        """The file name of the result in the folder of the job."""
        if self.is_image:
            return 'image.png'
        return preview_store.PREVIEW if self.kind == 'preview' else preview_store.VIDEO

    def to_json(self) -> str:
        """Serializes the request."""
        return json.dumps(config_lib.to_dict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> 'JobRequest':
        """Parses what `to_json` wrote."""
        return config_lib.build(cls, json.loads(text), 'request')


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
      prompt_characters: of a prompt.
      waiting_jobs: queued or in progress, of one user.
      upload_bytes: of an uploaded file.
      clip_frames: of an uploaded clip.
      clip_pixels: of a frame of an uploaded clip, or of an image.
      result_pixels: of a frame of an enhanced clip or image; None for those of an enhanced preview.
      num_steps: of a sampler.
    """

    prompt_characters: int = 2000
    waiting_jobs: int = 100
    upload_bytes: int = 100_000_000
    clip_frames: int = 600
    clip_pixels: int = 4096 * 2304
    result_pixels: int | None = None
    num_steps: int = 100
