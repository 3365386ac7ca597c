"""The runner of the text-to-video pipeline: the code path of `python -m fv_jax.sample`, one job at a time."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.core.throughput import StepCost
from fv_jax.data.images import IMAGE_SUFFIXES
from fv_jax.data.synthetic import sprites
from fv_jax.data.video.encoding import DEFAULT_CRF
from fv_jax.planning import step_cost
from fv_jax.sampling import preview_store
from fv_jax.sampling.clip_list import ClipJob
from fv_jax.sampling.clip_outputs import ClipOutput
from fv_jax.sampling.clip_sources import ClipSource
from fv_jax.sampling.framing import Framing, scaled_size
from fv_jax.sampling.metadata import FPS
from fv_jax.sampling.progress import OnStep
from fv_jax.sampling.settings import ClipSettings, EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline
from fv_jax.sampling.windows import Windows
from fv_jax.serving.requests import JobRequest, Limits, TooLargeError, UnsupportedTypeError
from fv_jax.serving.runner import Work

_CLOCKS = {'preview': 'preview', 'enhance': 'enhance', 'clip': 'enhance'}  # of `Pipeline.clock`, by kind of job


class PipelineRunner:
    """Runs jobs with a pipeline, which may have one stage alone."""

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None):
        """Makes the runner; no network is loaded yet.

        Args:
          pipeline: with the default settings of the jobs.
          limits: None for the defaults.
        """
        require(jax.process_count() == 1, f'{jax.process_count()} processes: a job server runs in one')
        self._pipeline, self._limits = pipeline, limits or Limits()
        self.num_devices = pipeline.num_devices
        weights = pipeline.origin.official or ', '.join(pipeline.origin.checkpoints)
        self.setup = f'{weights} on {self.num_devices} {jax.devices()[0].device_kind}'
        self._described = dict(self._list_kinds())

    def load(self) -> None:
        """Loads the networks of both stages, and the VAE."""
        for part in (self._pipeline.preview_stage, self._pipeline.enhancement_stage):
            if part is not None:
                _ = part.weight_digests, part.vae.jitted

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        return self._described

    def _list_kinds(self) -> Iterator[tuple[str, dict[str, Any]]]:
        pipeline = self._pipeline
        if pipeline.preview_stage is not None:
            settings = pipeline.preview_settings
            described = {'size': settings.size, 'frames': settings.frames, 'num_steps': settings.num_steps}
            embedded = pipeline.origin.checkpoints == ('embedded',)
            yield 'preview', described | ({'note': _describe_known_prompts()} if embedded else {})
        if pipeline.enhancement_stage is not None:
            settings = pipeline.enhance_settings
            if pipeline.preview_stage is not None:
                size = settings.size_for(*pipeline.preview_settings.size, pipeline.stage2.latent_spec)
                yield 'enhance', {'size': size, 'num_steps': settings.num_steps}
            if pipeline.stage2.clip_frames:
                yield 'clip', {'scale': settings.scale, 'pixels': self._most_pixels, 'num_steps': settings.num_steps}

    @property
    def _most_pixels(self) -> int:
        """The largest number of pixels of a frame of an enhanced clip."""
        pipeline = self._pipeline
        if self._limits.result_pixels is not None:
            return self._limits.result_pixels
        size = pipeline.enhance_settings.size
        if size is None:
            size = pipeline.enhance_settings.size_for(*pipeline.preview_settings.size, pipeline.stage2.latent_spec)
        return size[0] * size[1]

    # --- requests ---

    def complete(self, request: JobRequest, source: JobRequest | StoragePath | None) -> JobRequest:
        known = ', '.join(self._described)
        require(request.kind in self._described, f'{request.kind}: these weights cannot make it; they make {known}')
        if request.kind == 'preview':
            return self._complete_preview(request)
        if request.kind == 'enhance':
            return self._complete_enhancement(request, source)
        return self._complete_clip(request, source)

    def _complete_preview(self, request: JobRequest) -> JobRequest:
        given, pipeline = self._pipeline.preview_settings, self._pipeline
        settings = self._preview_settings(request)
        most = given.frames * given.size[0] * given.size[1]
        pixels = settings.frames * settings.size[0] * settings.size[1]
        width, height = settings.size[1], settings.size[0]
        fix = f'use at most {most} pixels, those of {given.frames} frames of {given.size[1]}x{given.size[0]}'
        require(pixels <= most, f'size={width}x{height}: {settings.frames} frames have {pixels} pixels; {fix}')
        pipeline.check(settings)
        return dataclasses.replace(
            request, size=settings.size, frames=settings.frames, fps=FPS, num_steps=settings.num_steps
        )

    def _complete_enhancement(self, request: JobRequest, preview: JobRequest) -> JobRequest:
        settings = self._enhance_settings(request)
        size = settings.size_for(*preview.size, self._pipeline.stage2.latent_spec)
        return dataclasses.replace(request, size=size, frames=preview.frames, fps=FPS, num_steps=settings.num_steps)

    def _complete_clip(self, request: JobRequest, path: StoragePath) -> JobRequest:
        limits, name = self._limits, request.source_name
        try:
            with _hide_path(path, request):
                clip, info = _clip_source(path, request).open()
        except ValueError as error:
            raise UnsupportedTypeError(f'{error}; upload a video or an image that can be read') from None
        frames, fps = (1, None) if info is None else (info.frames, float(info.fps))
        height, width = clip.size
        long = f'{name}: has {frames} frames; upload at most {limits.clip_frames}'
        require(frames <= limits.clip_frames, long, TooLargeError)
        large = f'{name}: has {width}x{height} pixels; upload at most {limits.clip_pixels} pixels a frame'
        require(height * width <= limits.clip_pixels, large, TooLargeError)
        settings = self._enhance_settings(request)
        size = request.size or self._largest_size(clip.size, settings.scale)
        spec, most = self._pipeline.stage2.latent_spec, self._most_pixels
        spec.check_size('size', size)
        result = f'size={size[1]}x{size[0]}: has {size[0] * size[1]} pixels; use at most {most}'
        require(size[0] * size[1] <= most, result)
        shown = Framing(clip.size, size, ClipSettings().fit).shown
        sizes = {'size': size, 'source_size': clip.size, 'shown_size': shown}
        return dataclasses.replace(request, **sizes, frames=frames, fps=fps, num_steps=settings.num_steps)

    def _largest_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Returns the size of a clip enlarged by `scale`, or less, so that it does not exceed the limit."""
        spec, most = self._pipeline.stage2.latent_spec, self._most_pixels
        largest = (most / (size[0] * size[1])) ** 0.5
        return scaled_size(size, min(scale, int(largest * 1000) / 1000), 'crop', spec)

    def _preview_settings(self, request: JobRequest) -> PreviewSettings:
        given = {'size': request.size, 'frames': request.frames, 'num_steps': request.num_steps}
        known = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self._pipeline.preview_settings, **known)

    def _enhance_settings(self, request: JobRequest) -> EnhanceSettings:
        given = self._pipeline.enhance_settings
        size = request.size if request.kind == 'clip' else given.size
        return dataclasses.replace(given, size=size, num_steps=request.num_steps or given.num_steps)

    # --- work ---

    def work(self, request: JobRequest) -> Work:
        cost = self._cost(request)
        size = f'{request.frames}x{request.size[0]}x{request.size[1]}'
        shape = f'{request.kind} {size}, {request.num_steps} steps'
        return Work(_CLOCKS[request.kind], shape, cost.flops, cost.roofline_seconds)

    def _cost(self, request: JobRequest) -> StepCost:
        """Computes the cost of a request; of an enhancement without the decoding of the small preview."""
        pipeline = self._pipeline
        if request.kind == 'preview':
            return step_cost.preview_cost(pipeline.stage1, self._preview_settings(request), 1)
        settings = dataclasses.replace(self._enhance_settings(request), size=request.size)
        frames = pipeline.stage2.window_frames if request.kind == 'clip' else request.frames
        return step_cost.window_cost(pipeline.stage2, settings, frames, self._num_windows(request))

    def _num_windows(self, request: JobRequest) -> int:
        """Returns the number of windows of a clip without cuts; a preview is one."""
        if request.kind != 'clip':
            return 1
        stage2 = self._pipeline.stage2
        return Windows.create(stage2.window_frames, None, stage2.latent_spec).count(request.frames)

    # --- running ---

    def run(self, request: JobRequest, source: StoragePath | None, folder: StoragePath, on_step: OnStep) -> float:
        progress = _JobProgress(on_step, self._num_windows(request))
        pipeline = dataclasses.replace(self._pipeline, progress=progress)
        compiling, name = pipeline.clock.compiling_s, _CLOCKS[request.kind]
        before = compiling.get(name, 0.0)
        if request.kind == 'preview':
            settings = self._preview_settings(request)
            ((preview,),) = pipeline.preview_batches([request.prompt], [request.seed], settings)
            preview_store.save(folder, preview, fps=FPS, crf=DEFAULT_CRF)
        elif request.kind == 'enhance':
            stored, settings = preview_store.load(source), self._enhance_settings(request)
            ((video,),) = pipeline.enhance_batches([stored], [request.seed], settings)
            with files.atomic_write(folder) as partial:
                partial.mkdir()
                video.save(partial / request.result)
        else:
            _run_clip(pipeline, request, source, folder, self._enhance_settings(request))
        return compiling.get(name, 0.0) - before


def _run_clip(
    pipeline: Pipeline, request: JobRequest, path: StoragePath, folder: StoragePath, settings: EnhanceSettings
) -> None:
    """Enhances an uploaded clip or image, as `sample clip` does it."""
    job = ClipJob(pipeline, request.seed, settings, ClipSettings(), 'h264', DEFAULT_CRF)
    with _hide_path(path, request), files.atomic_write(folder) as partial:
        partial.mkdir()
        output = ClipOutput('image' if request.is_image else 'mp4', partial / request.result)
        job.enhance(_clip_source(path, request), output)


def _clip_source(path: StoragePath, request: JobRequest) -> ClipSource:
    kind = 'image' if path.suffix.lower() in IMAGE_SUFFIXES else 'video'
    return ClipSource(kind, path, request.source_name or path.name)


def _describe_known_prompts() -> str:
    """Describes what the small weights in the package were trained on."""
    objects, places = ', '.join(sprites.OBJECTS), ', '.join(sprites.BACKGROUNDS.values())
    pattern = sprites.CANONICAL.format(thing='a ladybug', motion='left to right', place='a beach')
    return (
        'These are the small weights of the package: they show how it works, not what the official weights can do. '
        f'They know prompts such as "{pattern}", with one of these objects: {objects}; over one of these places: '
        f'{places}.'
    )


@contextlib.contextmanager
def _hide_path(path: StoragePath, request: JobRequest) -> Iterator[None]:
    """A context in which messages name the user's file, and not its place on this machine."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), request.source_name or path.name)) from error


class _JobProgress:
    """A `sampling.progress.Progress` that counts the steps of all windows of a job."""

    def __init__(self, on_step: OnStep, num_windows: int):
        """Makes the progress. num_windows: that are expected; cuts of a clip may make more."""
        self._on_step, self._expected, self._started = on_step, num_windows, 0

    @contextlib.contextmanager
    def __call__(self, name: str, num_steps: int) -> Iterator[OnStep]:
        del name
        before = self._started * num_steps
        self._started += 1

        def report(done: int, total: int) -> None:
            self._on_step(before + done, max(self._expected, self._started) * total)

        yield report
