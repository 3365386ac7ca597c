"""Applies every method to every clip, measures the videos, and writes them with the report.

The output folder holds:

  clips/NAME/input.mp4, METHOD.mp4   the low-quality video, and the video of every method
  clips/NAME/strip.png               the middle frames and an enlarged part
  report.json, report.md, report.html

A clip is measured method by method, so that two videos of its size are in memory at most.
"""

import contextlib
import dataclasses
import logging
import math
import platform
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import fv_jax
from fv_jax.core.checks import require
from fv_jax.core.files import atomic_write, make_folder, write_json, write_text
from fv_jax.core.paths import StoragePath
from fv_jax.core.report.markdown import to_markdown
from fv_jax.core.report.page import to_html
from fv_jax.data.transforms import to_float
from fv_jax.data.video import encoding
from fv_jax.evaluation import i3d
from fv_jax.evaluation.clip_sources import ClipError, EvaluationClip, Loader
from fv_jax.evaluation.ffmpeg_metrics import find_ffmpeg
from fv_jax.evaluation.methods import Method
from fv_jax.evaluation.report_page import BASELINE, FORMAT, ClipMedia, build_report
from fv_jax.evaluation.statistics import CONFIDENCE, paired_difference, summarize
from fv_jax.evaluation.strips import TRUTH, strip
from fv_jax.evaluation.suite import Suite
from fv_jax.evaluation.weight_files import I3D, MissingPackageError

log = logging.getLogger(__name__)

CLIPS = 'clips'
FVD = 'fvd'


@dataclasses.dataclass
class Comparison:
    """Methods measured on clips.

    Attributes:
      methods: in the order of tables.
      suite: the metrics.
      output: the folder to write to.
      rows: of every clip that was measured, for report.json, with the values of every method.
      media: its files.
      skipped: of clips and results of others that cannot be read, why.
      features: method -> logits of I3D of its clips, if FVD is computed.
    """

    methods: Sequence[Method]
    suite: Suite
    output: StoragePath
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    media: list[ClipMedia] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    features: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def run(self, clips: Sequence[Loader]) -> None:
        """Measures the clips; skips and names those that raise ClipError.

        Raises ValueError if there is no other, or for one that cannot be enhanced.
        """
        variables = self._load_i3d(len(clips))
        names: set[str] = set()
        for load in clips:
            try:
                clip = load()
            except ClipError as error:
                self._skip(error)
                continue
            assert clip.name not in names, clip.name
            names.add(clip.name)
            self._run_clip(clip, variables)
        require(self.rows, f'none of {len(clips)} clip(s) can be used: {"; ".join(self.skipped[:3])}')

    def _skip(self, error: ClipError) -> None:
        self.skipped.append(str(error))
        name, _, reason = str(error).partition(': ')
        self.suite.not_computed[name] = reason
        log.info(f'skipped: {error}')

    def _run_clip(self, clip: EvaluationClip, variables: i3d.Variables | None) -> None:
        folder = self.output / CLIPS / clip.name
        make_folder(folder)
        height, width = (side // 2 * 2 for side in clip.low_quality.shape[1:3])  # H.264 takes even sides
        encoding.encode(folder / 'input.mp4', clip.low_quality[:, :height, :width], clip.fps)
        values, middle, files = {}, {}, {}
        for method in self.methods:
            if not method.can_make(clip):
                continue
            started = time.monotonic()
            try:
                video = method.make(clip)
            except ClipError as error:
                self._skip(error)
                continue
            made = time.monotonic()
            assert video.shape == (len(clip.low_quality), *clip.size, 3), (method.name, video.shape)
            truth = None if method.kind == 'truth' else clip.truth
            values[method.name] = self.suite.measure(video, truth, f'{clip.name}, {method.name}')
            if variables is not None:
                self.features.setdefault(method.name, []).append(i3d.logits(to_float(video), variables))
            middle[method.name] = video[len(video) // 2][None]
            files[method.name] = folder / f'{_file_name(method.name)}.mp4'
            encoding.encode(files[method.name], video, clip.fps)
            log.info(
                f'{clip.name}: {method.name}, made in {made - started:.1f} s, measured in '
                f'{time.monotonic() - made:.1f} s'
            )
        with atomic_write(folder / 'strip.png') as partial:
            strip(middle).save(partial)
        self.media.append(ClipMedia(clip.name, folder / 'strip.png', files))
        self.rows.append(
            {
                'name': clip.name,
                'frames': len(clip.low_quality),
                'size': list(clip.size),
                'input_size': list(clip.low_quality.shape[1:3]),
                'fps': clip.fps,
                'values': values,
            }
        )

    def _load_i3d(self, clips: int) -> i3d.Variables | None:
        """Loads I3D if there are enough clips for FVD; else notes why it is not computed."""
        if clips < i3d.MIN_CLIPS:
            self.suite.not_computed['FVD'] = f'needs {i3d.MIN_CLIPS} clips or more; there are {clips}'
            return None
        try:
            variables = i3d.load_i3d()
        except MissingPackageError as error:
            self.suite.not_computed['FVD'] = str(error)
            return None
        self.suite.digests[f'{I3D.distribution}/{I3D.file}'] = I3D.sha256
        return variables

    def _sets(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Computes FVD of every method to the ground truth."""
        truth = self.features.get(TRUTH)
        found = {}
        for name, features in self.features.items():
            if truth and name != TRUTH:
                distance = i3d.frechet_distance(np.float64(features), np.float64(truth))
                found[name] = {FVD: {'value': distance, 'clips': len(features)}}
        return found

    def write(self, title: str, settings: Mapping[str, Any], losses: Mapping[str, float] | None) -> dict[str, Any]:
        """Writes report.json, report.md and report.html.

        Args:
          title: of the report.
          settings: of the command, for the report.
          losses: of `heldout_loss`, if it was computed.

        Returns:
          The content of report.json.
        """
        sets = self._sets()
        metrics = self.suite.describe()
        if sets:
            metrics[FVD] = {
                'label': 'FVD', 'direction': 'lower', 'unit': '', 'digits': 1, 'frames': 'all', 'reference': True
            }  # fmt: skip
        data = {
            'format': FORMAT,
            'title': title,
            'versions': _versions(),
            'settings': dict(settings),
            'weights': self.suite.digests,
            'metrics': metrics,
            'not_computed': self.suite.not_computed,
            'methods': [method.describe() for method in self.methods],
            'clips': self.rows,
            'summary': self._summary(),
            'paired': self._paired_differences(),
            'sets': sets,
            'losses': losses,
        }
        data = _without_nan(data)
        write_json(self.output / 'report.json', data)
        report = build_report(data, self.media)
        write_text(self.output / 'report.md', to_markdown(report, self.output / 'charts'))
        write_text(self.output / 'report.html', to_html(report))
        return data

    def _values(self, method: str, metric: str) -> list[float | None]:
        return [row['values'].get(method, {}).get(metric) for row in self.rows]

    def _summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        summary = {}
        for method in self.methods:
            found = {m.name: summarize(self._values(method.name, m.name)) for m in self.suite.metrics}
            summary[method.name] = {name: value._asdict() for name, value in found.items() if value is not None}
        return summary

    def _paired_differences(self) -> list[dict[str, Any]]:
        """Compares networks and results of others with bilinear interpolation, and networks with the first one."""
        first = next((method.name for method in self.methods if method.kind == 'network'), None)
        pairs = []
        for method in self.methods:
            if method.kind not in ('network', 'result'):
                continue
            others = [BASELINE, *([first] if first not in (None, method.name) else [])]
            for against in others:
                for metric in self.suite.metrics:
                    values = self._values(method.name, metric.name), self._values(against, metric.name)
                    if (found := paired_difference(*values)) is not None:
                        names = {'metric': metric.name, 'method': method.name, 'against': against}
                        pairs.append(names | {'confidence': CONFIDENCE} | found._asdict())
        return pairs


def _file_name(method: str) -> str:
    return re.sub(r'[^\w.=-]+', '_', method)


def _versions() -> dict[str, str]:
    found = {
        'fv_jax': fv_jax.__version__,
        'jax': jax.__version__,
        'numpy': np.__version__,
        'python': platform.python_version(),
        'backend': jax.default_backend(),
    }
    with contextlib.suppress(MissingPackageError):
        found['ffmpeg'] = find_ffmpeg().name  # names its version and platform
    return found


def _without_nan(value: Any) -> Any:
    """Replaces infinite numbers by 'inf' or '-inf', and NaN by None: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
