"""Results of the pipeline: arrays with generation metadata, which can be saved and play in a notebook."""

import base64
import dataclasses
import html

import numpy as np

from fv_jax.core import files, paths
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import encoding
from fv_jax.data.video.encoding import DEFAULT_CRF
from fv_jax.sampling.metadata import GenerationMetadata

_NOTEBOOK_CRF = 23  # higher than of a saved mp4, as notebooks store what they show
_NOTEBOOK_WIDTH = 480  # pixels that a smaller video is shown at


class _Playable:
    """Base of results with `frames`, (F, H, W, 3) uint8, and `metadata`."""

    frames: np.ndarray
    metadata: GenerationMetadata
    times: tuple[tuple[float, float], ...] | None = None

    def save(self, path: str | StoragePath, *, fps: float | None = None, crf: float = DEFAULT_CRF) -> None:
        """Writes an H.264 mp4 atomically, with the metadata in its comment.

        Args:
          path: the file; an existing one is replaced.
          fps: frames per second, above 0; None for the official 8, or for the frame times of an enhanced clip.
          crf: x264's rate factor, 0 (lossless) to 51.

        Raises:
          ValueError: an invalid fps.
          OSError: the file cannot be written.
        """
        path = files.resolve_path(path)
        parent = paths.absolute(path).parent
        require(files.folder_exists(parent), f'{path}: folder {path.parent} does not exist', FileNotFoundError)
        times = self.times if fps is None else None
        fps = self.metadata.fps if fps is None else float(fps)
        comment = dataclasses.replace(self.metadata, fps=fps, crf=float(crf)).to_json()
        encoding.encode(path, self.frames, fps, crf=crf, comment=comment, times=times)

    def _repr_html_(self) -> str:
        data = encoding.encode_bytes(self.frames, self.metadata.fps, crf=_NOTEBOOK_CRF, times=self.times)
        data = base64.b64encode(data).decode()
        width = max(self.frames.shape[2], _NOTEBOOK_WIDTH)
        return (
            f'<figure><video controls autoplay loop muted playsinline style="width: {width}px; max-width: 100%" '
            f'src="data:video/mp4;base64,{data}"></video><figcaption>{html.escape(self._caption())}</figcaption>'
            '</figure>'
        )

    def _caption(self) -> str:
        if self.metadata.clip is not None:
            return f'{self.metadata.clip.name or "frames"}, enhanced (seed {self.metadata.enhance.seed})'
        return f'{self.metadata.preview.prompt} (seed {self.metadata.preview.seed})'

    def __repr__(self) -> str:
        frames, height, width, _ = self.frames.shape
        return f'{type(self).__name__}({self._caption()!r}, {frames} frames of {height}x{width})'


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StoredPreview:
    """What stage 2 needs of a preview: its latents (F', H', W', C), float32 and unscaled, and its metadata."""

    latents: np.ndarray
    metadata: GenerationMetadata

    @property
    def prompt(self) -> str:
        return self.metadata.preview.prompt

    @property
    def seed(self) -> int:
        return self.metadata.preview.seed


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Preview(_Playable, StoredPreview):
    """A low-resolution preview, the input of `FlashVideo.enhance`.

    Attributes:
      latents: (F', H', W', C) float32, unscaled, of the size that the VAE's `LatentSpec` gives.
      metadata: how it was generated.
      frames: (F, H, W, 3) uint8, decoded from the latents, for viewing.
    """

    frames: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Video(_Playable):
    """An enhanced, high-resolution video.

    Attributes:
      frames: (F, H, W, 3) uint8.
      metadata: how it was generated.
      times: (time, duration) of each frame in seconds, of a clip of variable frame rate; None for a constant rate.
    """

    frames: np.ndarray
    metadata: GenerationMetadata
    times: tuple[tuple[float, float], ...] | None = None

    @property
    def seed(self) -> int:
        """The seed of the noise of stage 2."""
        return self.metadata.enhance.seed
