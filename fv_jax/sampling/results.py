"""What the pipeline gives back: arrays that know how they came about, can be saved, and play in a notebook."""

import base64
import dataclasses
import html
from pathlib import Path

import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.video import video_io
from fv_jax.data.video.video_io import DEFAULT_CRF
from fv_jax.sampling.metadata import FPS, Record

_SHOWN_CRF = 23  # in a notebook, which keeps what it shows
_SHOWN_WIDTH = 480  # pixels that a small video is shown at


class _Playable:
    """`frames` (F, H, W, 3) uint8, and `record`."""

    frames: np.ndarray
    record: Record

    def save(self, path: str | Path, *, fps: float = FPS, crf: float = DEFAULT_CRF) -> None:
        """Writes an H.264 mp4, with the record in its comment; it appears when it is whole.

        Args:
          path: the file; one that is there is replaced.
          fps: frames a second, above 0; 8 is the official rate.
          crf: x264's rate factor, 0 (lossless) to 51.

        Raises ValueError for an fps that is none, OSError where it cannot be written.
        """
        path = Path(path)
        require(path.absolute().parent.is_dir(), f'{path}: there is no folder {path.parent}', FileNotFoundError)
        comment = dataclasses.replace(self.record, fps=float(fps), crf=float(crf)).to_json()
        video_io.encode(path, self.frames, fps, crf=crf, comment=comment)

    def _repr_html_(self) -> str:
        data = base64.b64encode(video_io.encode_bytes(self.frames, FPS, crf=_SHOWN_CRF)).decode()
        width = max(self.frames.shape[2], _SHOWN_WIDTH)
        return (
            f'<figure><video controls autoplay loop muted playsinline style="width: {width}px; max-width: 100%" '
            f'src="data:video/mp4;base64,{data}"></video><figcaption>{html.escape(self._caption())}</figcaption>'
            '</figure>'
        )

    def _caption(self) -> str:
        return f'{self.record.preview.prompt} (seed {self.record.preview.seed})'

    def __repr__(self) -> str:
        frames, height, width, _ = self.frames.shape
        return f'{type(self).__name__}({self._caption()!r}, {frames} frames of {height}x{width})'


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stored:
    """What of a preview is enhanced: its latents (F', H', W', C) float32, as the VAE decodes them, and its record."""

    latents: np.ndarray
    record: Record

    @property
    def prompt(self) -> str:
        return self.record.preview.prompt

    @property
    def seed(self) -> int:
        return self.record.preview.seed


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Preview(_Playable, Stored):
    """A low-resolution preview. `FlashVideo.enhance` makes it a `Video`.

    latents: (F', H', W', C) float32, as the VAE decodes them, of the size that its `LatentSpec` gives.
    frames: (F, H, W, 3) uint8, decoded from them, to look at.
    """

    frames: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Video(_Playable):
    """An enhanced preview. frames: (F, H, W, 3) uint8."""

    frames: np.ndarray
    record: Record

    @property
    def seed(self) -> int:
        """Of stage 2."""
        return self.record.enhance.seed
