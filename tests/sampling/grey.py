"""A pipeline without networks, which draws a grey whose level is the seed, for tests of the commands."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from fv_jax import api, sample
from fv_jax.core.console import Notice
from fv_jax.sampling.metadata import EnhanceMetadata, GenerationMetadata, PreviewMetadata, WeightDigests, WeightsOrigin
from fv_jax.sampling.results import Preview, Video
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from tests.sampling import tiny

SPEC = tiny.VAE_CONFIG.latent_spec
WEIGHTS = WeightDigests('a' * 16, 'b' * 16, 'c' * 16)


@dataclasses.dataclass
class GreyPipeline:
    """Notes what it is asked. errors: of sampling, by prompt."""

    origin: WeightsOrigin
    preview_settings: PreviewSettings
    enhance_settings: EnhanceSettings
    notes: tuple[str, ...] = ('a note of the weights',)
    weights: WeightDigests = WEIGHTS
    loaded: int = 0  # how often weights were loaded
    errors: dict = dataclasses.field(default_factory=lambda: {'interrupt': KeyboardInterrupt})
    enhance_errors: dict = dataclasses.field(default_factory=dict)
    calls: list = dataclasses.field(default_factory=list)

    num_devices = 1

    @property
    def stage1(self):
        return Part(self)

    stage2 = stage1

    def find_vae(self, preview):
        return SimpleNamespace(config=tiny.VAE_CONFIG)

    def check(self, preview, enhance):
        self.calls.append(('check', preview, enhance))
        preview.check(SPEC, 'stage1.')

    def preview_batches(self, prompts, seeds, settings, *, batch_size=None):
        self.calls.append(('preview', list(prompts), list(seeds), settings, batch_size))
        warnings.warn('a note of the prompts', Notice, stacklevel=2)
        for first in range(0, len(prompts), batch_size or len(prompts)):
            batch = list(zip(prompts, seeds, strict=True))[first:][:batch_size]
            for prompt, error in self.errors.items():
                if any(prompt == wanted for wanted, _ in batch):
                    raise error('out of memory')
            yield [self.draw(prompt, seed, settings) for prompt, seed in batch]

    def draw(self, prompt, seed, settings):
        made = GenerationMetadata('1', self.origin, PreviewMetadata(prompt, seed, settings, self.weights))
        return Preview(np.full((3, 2, 4, 4), seed, np.float32), made, np.full((9, 16, 32, 3), seed % 256, np.uint8))

    def enhance_batches(self, previews, seeds, settings, *, batch_size=None):
        self.calls.append(('enhance', [p.prompt for p in previews], list(seeds), settings, batch_size))
        for first in range(0, len(previews), batch_size or len(previews)):
            videos = []
            for preview, seed in list(zip(previews, seeds, strict=True))[first:][:batch_size]:
                if preview.prompt in self.enhance_errors:
                    raise self.enhance_errors[preview.prompt]('out of memory')
                made = dataclasses.replace(preview.metadata, enhance=EnhanceMetadata(seed, settings, self.weights))
                videos.append(Video(np.full((9, 64, 128, 3), seed % 256, np.uint8), made))
            yield videos


@dataclasses.dataclass
class Part:
    """A stage of the pipeline."""

    pipeline: GreyPipeline
    latent_spec = SPEC

    @property
    def weight_digests(self):
        self.pipeline.loaded += 1
        return self.pipeline.weights


def use_grey_pipeline(monkeypatch: pytest.MonkeyPatch) -> GreyPipeline:
    """Lets the command open a grey pipeline, whatever the weights."""
    settings = PreviewSettings(frames=9, size=(16, 32)), EnhanceSettings(size=None, prompt_prefix='')
    fv, origins = GreyPipeline(WeightsOrigin(checkpoints=('grey',), steps=(1, 1)), *settings), []
    monkeypatch.setattr(api.FlashVideo, 'from_origin', lambda origin, parallel: origins.append(origin) or fv)
    for name in ('report_previewing', 'report_enhancing'):  # it computes nothing
        monkeypatch.setattr(sample.pipeline, name, lambda *arguments: None)
    fv.origins = origins
    return fv
