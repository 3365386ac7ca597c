"""VMAF, VMAF-NEG and XPSNR, computed by the ffmpeg in the package imageio-ffmpeg.

That ffmpeg is licensed under the GPL 3: it is run as a process and is no part of this package. Its libvmaf has the
models built in. Both videos go through one pipe, one above the other, as 8-bit RGB; ffmpeg cuts them apart and converts
them to 4:2:0 of BT.709 in studio range.
"""

import contextlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.transforms import to_uint8
from fv_jax.evaluation.videos import check_pair
from fv_jax.evaluation.weight_files import package_folder

_MIN_SIDE = 32  # pixels: below, libvmaf has no output at its coarsest scale
_MODELS = {'vmaf': 'vmaf_v0.6.1', 'vmaf_neg': 'vmaf_v0.6.1neg'}
_LOG = 'metric.log'
_YUV = 'scale=out_color_matrix=bt709:out_range=tv,format=yuv420p'
_XPSNR_LINE = r'XPSNR y:\s*(\S+)\s+XPSNR u:\s*(\S+)\s+XPSNR v:\s*(\S+)'
_XPSNR_WEIGHTS = (6 / 8, 1 / 8, 1 / 8)
_ERROR_LENGTH = 300  # characters of ffmpeg's last message that are shown


def vmaf(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes VMAF of every frame, with the model vmaf_v0.6.1 (1080p on a television).

    Source: Netflix, https://github.com/Netflix/vmaf.
    Range and direction: 0 to 100; higher is better. Sharpening and contrast raise it, above the ground truth's own.

    Args:
      video, truth: (F, H, W, 3), uint8, or float in [-1, 1], which is rounded to 8 bits.

    Returns:
      (F,) float32.

    Raises:
      MissingPackageError: imageio-ffmpeg is not installed.
      ValueError: videos that do not fit each other or the range, frames below 32 pixels, or ffmpeg has failed.
    """
    return _run_vmaf(video, truth, 'vmaf')


def vmaf_neg(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes VMAF-NEG of every frame: VMAF without what enhancement beyond the ground truth gains.

    Source: model vmaf_v0.6.1neg of Netflix, https://github.com/Netflix/vmaf.
    Range and direction: 0 to 100; higher is better. Arguments, result and errors: `vmaf`'s.
    """
    return _run_vmaf(video, truth, 'vmaf_neg')


def xpsnr(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes XPSNR of every frame: PSNR of planes whose errors are weighted by visibility, (6 Y + U + V) / 8.

    Source: Helmrich et al., ICASSP 2020, by ffmpeg's filter xpsnr, which gives the three planes in dB.
    Range and direction: dB, 0 upwards, infinite for equal frames; higher is better. It takes motion into account, at 24
    frames per second: the first frame's value is not like the others'. Arguments, result and errors: `vmaf`'s.
    """
    video, truth = check_pair(video, truth, 'XPSNR', min_side=_MIN_SIDE, allow_uint8=True)
    log = _run(video, truth, f'[video][truth]xpsnr=stats_file={_LOG}', 'XPSNR')
    planes = np.array([[float(x) for x in found] for found in re.findall(_XPSNR_LINE, log)]).reshape(-1, 3)
    require(len(planes) == len(video), f'XPSNR: ffmpeg has returned {len(planes)} of {len(video)} frame(s)')
    return (planes @ np.array(_XPSNR_WEIGHTS)).astype(np.float32)


def _run_vmaf(video: np.ndarray, truth: np.ndarray, name: str) -> np.ndarray:
    label = name.upper().replace('_', '-')
    video, truth = check_pair(video, truth, label, min_side=_MIN_SIDE, allow_uint8=True)
    options = f'model=version={_MODELS[name]}:log_fmt=json:log_path={_LOG}:n_threads=2'
    log = _run(video, truth, f'[video][truth]libvmaf={options}', name)
    frames = json.loads(log)['frames']
    require(len(frames) == len(video), f'{name}: ffmpeg has returned {len(frames)} of {len(video)} frame(s)')
    return np.array([frame['metrics']['vmaf'] for frame in frames], np.float32)


def find_ffmpeg() -> Path:
    """Finds the ffmpeg in the package imageio-ffmpeg, without importing it. Raises MissingPackageError, ValueError."""
    folder = package_folder('imageio_ffmpeg', 'imageio-ffmpeg') / 'binaries'
    found = sorted(folder.glob('ffmpeg*'))
    require(found, f'{folder}: has no ffmpeg; install imageio-ffmpeg again, from a wheel for this platform')
    return found[0]


def _run(video: np.ndarray, truth: np.ndarray, graph: str, name: str) -> str:
    """Runs a filter of two videos and returns what it wrote to its log."""
    height, width = video.shape[1:3]
    cut = ';'.join(
        f'[{i}]crop={width}:{height}:0:{top}:exact=1,{_YUV}[{label}]'
        for i, (label, top) in enumerate((('video', 0), ('truth', height)))
    )
    raw = ['-f', 'rawvideo', '-pixel_format', 'rgb24', '-video_size', f'{width}x{2 * height}', '-framerate', '24']
    command = [find_ffmpeg(), '-hide_banner', '-loglevel', 'error', *raw, '-i', 'pipe:0', '-lavfi']
    command += [f'[0:v]split=2[0][1];{cut};{graph}', '-f', 'null', '-']
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder) / _LOG, Path(folder) / 'errors'
        with errors.open('wb') as out:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=out
            )
        # A process that has failed closes its pipe; its exit code and message say why.
        with process, contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            for frames in zip(video, truth, strict=True):
                stacked = np.concatenate(frames)
                pipe.write((stacked if stacked.dtype == np.uint8 else to_uint8(stacked)).tobytes())
        message = ' '.join(errors.read_text(errors='replace').split())[-_ERROR_LENGTH:]
        failed = f'{name}: ffmpeg has failed with exit code {process.returncode}: {message}'
        require(process.returncode == 0 and log.is_file(), failed)
        return log.read_text(encoding='utf-8')
