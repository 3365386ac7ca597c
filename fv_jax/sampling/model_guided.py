"""Model-guided degradation: clips are noised and denoised by stage 1, so that they have what its previews have.

SimpleGVR (arXiv:2506.19838) makes its low-resolution inputs in this way, from noise levels of 0.3 to 0.4:

    z       = encode(resize(clip, 1 / factor))        the VAE of stage 1
    z'      = stage 1 from state i of its sampler     z noised to the level of that state (`PreviewStage.noise_levels`)
    preview = clip(decode(z'), -1, 1)                 as long as the clip
    result  = resize(preview, 1)                      bilinear, as the preview is before stage 2 (model guide 5.4)

i is drawn from the states whose levels are in the range, so that a clip is noised exactly as stage 1's sampler expects
it. SimpleGVR keeps z'; stage 2 here takes the latents of the enlarged preview, as in sampling.
"""

import dataclasses
import logging

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.data.degradation.configs import ModelGuidedConfig
from fv_jax.data.degradation.degradations import GuidedByModel
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.sampling import programs
from fv_jax.sampling.lazy_stages import LazyStage
from fv_jax.sampling.noise import SeededNoise
from fv_jax.stages.latent_stage import PreviewStage

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class StageDegradation:
    """Degrades clips by a preview stage; a `degradations.PreviewModel`.

    Attributes:
      preview: the stage.
      config: of the degradation.
      takes_text: whether the embeddings of captions are those of the stage's text encoder. Others are ignored: the
        stage then runs without text and guidance.
    """

    preview: LazyStage[PreviewStage]
    config: ModelGuidedConfig
    takes_text: bool = False

    @classmethod
    def create(
        cls, preview: LazyStage[PreviewStage], config: ModelGuidedConfig, text_digest: str | None
    ) -> 'StageDegradation':
        """Makes the degradation.

        Args:
          preview: the stage; its network is loaded when it is first used.
          config: of the degradation.
          text_digest: the fingerprint of the encoder of the clips' captions; None without any.

        Raises:
          ConfigError: the sampler has no state of such a noise level.
        """
        takes_text = text_digest is not None and preview.text is not None and preview.text.digest == text_digest
        made = cls(preview, config, takes_text)
        levels = preview.stage.noise_levels()[made.states()]
        shown = ', '.join(f'{level:.3f}' for level in levels)
        text = 'with the captions of the clips' if takes_text else 'without text and guidance'
        log.info(f'model-guided degradations: {preview.name}, from noise levels {shown}, {text}')
        return made

    def states(self) -> np.ndarray:
        """Returns the states of the sampler whose noise levels are in the range. Raises ConfigError if none is."""
        levels, (low, high) = self.preview.stage.noise_levels(), self.config.noise_levels
        found = np.flatnonzero((levels >= low) & (levels <= high))
        near = ' and '.join(f'{level:.3f}' for level in sorted(levels, key=lambda level: abs(level - low))[:2])
        wrong = f'model_guided.noise_levels={low}, {high}: no state of the sampler of {self.preview.name} is in between'
        require(len(found), f'{wrong}; the nearest have {near}', ConfigError)
        return found

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of the preview of a clip. Raises ValueError for a clip that is too small."""
        return self.preview.latent_spec.round_down(height / self.config.factor, width / self.config.factor)

    def __call__(self, frames_FHWC: np.ndarray, drawn: GuidedByModel, text_LD: np.ndarray | None) -> np.ndarray:
        """Degrades a clip; see `degradations.PreviewModel`.

        Raises:
          ValueError: a clip that is too small, or of a length that the VAE cannot take.
        """
        frames, height, width, _ = frames_FHWC.shape
        self.preview.latent_spec.check_frames('frames', frames)
        size, mesh, vae = self.size(height, width), self.preview.mesh, self.preview.vae.jitted
        first_state, seed = self.draw(drawn)
        noise = mesh.replicate(SeededNoise.from_seeds([seed]))
        is_captioned = self.takes_text and text_LD is not None and np.any(text_LD)
        text_BLD = mesh.replicate(np.asarray(text_LD, np.float32)[None]) if is_captioned else None
        z = programs.low_res_latents(vae, mesh.replicate(frames_FHWC[None]), size)
        z = programs.denoise_latents(self.preview.loaded, z, text_BLD, noise, first_state)
        video = mesh.to_host(programs.decode_latents(vae, z))[0]
        require(np.isfinite(video).all(), 'its preview has values that are not finite')
        return resize_bilinear(video, (height, width))

    def draw(self, drawn: GuidedByModel) -> tuple[int, int]:
        """Returns the state that a clip is noised to, and the seed of the noise."""
        rng = np.random.default_rng(drawn.seed)
        return int(rng.choice(self.states())), int(rng.integers(2**32))

    def describe(self, drawn: GuidedByModel) -> str:
        """Returns what is drawn, in words."""
        state, seed = self.draw(drawn)
        return f'noise level {self.preview.stage.noise_levels()[state]:.3f}, seed {seed}'
