"""Times `prepare` beside FFmpeg's own decoding and encoding, and the planning of many units.

    PYTHONPATH=. python tests/benchmarks/preparation.py speed VIDEO... [--workers 1,2] [--check 4,8] [--size 1072x1920]
        [--frames 49]
    PYTHONPATH=. python tests/benchmarks/preparation.py units [--count 100000]

`speed` runs `prepare` with each number of workers, and as many processes of FFmpeg (on the PATH, or of the extra
`evaluation`), which decode the same videos once, scale and crop them to the same size, and encode all of their
frames with the same preset and rate factor in one thread each. `prepare` decodes twice, detects shots, and encodes the
frames of clips. Of each, the frames of the videos per second of the clock and per second of the CPU, which other load
disturbs less. Sets of all numbers of workers, of --check too, must have the same records, by their fingerprints.

`units` plans so many videos of 5 MB that do not exist, makes their shards without reading or encoding anything (three
clips a video), stops at half, continues, and publishes. Seconds and memory of each step.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet

from fv_jax.data.preparation import plan as plan_module
from fv_jax.data.preparation.job import Job
from fv_jax.data.preparation.make_shard import ShardResult, UnitResult
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.preparation.units import Unit
from fv_jax.data.shards.record_writer import ShardWriter
from fv_jax.data.video import decoding
from fv_jax.data.video.clips import ClipsConfig

ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Times the preparation of videos.')
    commands = parser.add_subparsers(dest='command', required=True)
    speed = commands.add_parser('speed')
    speed.add_argument('videos', nargs='+', type=Path)
    speed.add_argument('--workers', default='1,2')
    speed.add_argument('--check', default='', help='more numbers of workers, whose sets are compared alone')
    speed.add_argument('--size', default='1072x1920')
    speed.add_argument('--frames', default='49')
    units = commands.add_parser('units')
    units.add_argument('--count', type=int, default=100_000)
    arguments = parser.parse_args(argv)
    if arguments.command == 'units':
        time_units(arguments.count)
    else:
        timed, checked = (
            [int(number) for number in text.split(',') if number] for text in (arguments.workers, arguments.check)
        )
        compare(arguments.videos, timed, checked, arguments.size.split('x'), arguments.frames)
    return 0


def measure(name: str, frames: int, run: Callable[[], str]) -> None:
    """Prints the speed of what runs in processes of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    more = run()
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f'{name}: {seconds:.1f} s, {frames / seconds:.1f} frames/s; CPU {cpu:.1f} s, {frames / cpu:.1f} frames/s a core'
        f'{more}',
        flush=True,
    )


def compare(
    videos: Sequence[Path], timed: Sequence[int], checked: Sequence[int], size: Sequence[str], clip_frames: str
) -> None:
    frames, content = sum(decoding.probe(video).frames for video in videos), {}
    print(f'{len(videos)} videos, {frames} frames; {len(os.sched_getaffinity(0))} cores')
    for count in [*timed, *checked]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / 'in').mkdir()
            for video in videos:
                (folder / 'in' / video.name).symlink_to(video.resolve())
            if count in timed:
                run = functools.partial(prepare, folder, count, size, clip_frames)
                measure(f'prepare, {count} worker(s)', frames, run)
                run = functools.partial(convert, folder, videos, count, size)
                measure(f'FFmpeg, {count} process(es)', frames, run)
            else:
                prepare(folder, count, size, clip_frames)
            content[count] = pyarrow.parquet.read_table(folder / 'out' / 'clips.parquet')['fingerprint'].to_pylist()
    first, *others = content.values()
    assert all(other == first for other in others), 'the sets differ'
    print(f'{len(first)} clips, equal for {", ".join(map(str, content))} worker(s)')


def prepare(folder: Path, workers: int, size: Sequence[str], clip_frames: str) -> str:
    """Runs the command; returns how many frames it has encoded and the most memory of a process."""
    command = [sys.executable, '-m', 'fv_jax.prepare', f'--input={folder}/in', f'--output={folder}/out']
    flags = [f'--config.height={size[0]}', f'--config.width={size[1]}', f'--config.frames={clip_frames}']
    flags += ['--config.max_upscale=4', f'--workers={workers}', '--config.shard_mb=1', '--config.unit_seconds=20']
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clips = json.loads((folder / 'out' / 'clips.json').read_text())['records']
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    return f'; {clips * int(clip_frames)} frames in {clips} clips; at most {memory:.0f} MB a process so far'


def ffmpeg() -> str:
    if found := shutil.which('ffmpeg'):
        return found
    from imageio_ffmpeg import get_ffmpeg_exe

    return get_ffmpeg_exe()


def convert(folder: Path, videos: Sequence[Path], processes: int, size: Sequence[str]) -> str:
    height, width = size
    scale = f'scale={width}:{height}:force_original_aspect_ratio=increase:flags=bilinear,crop={width}:{height}'
    encoder = ['-c:v', 'libx264', '-crf', '18', '-preset', 'medium', '-threads', '1', '-pix_fmt', 'yuv420p']

    def run(video: Path) -> None:
        source = ['-threads', '1', '-i', str(video), '-an', '-vf', scale, '-filter_threads', '1']
        target = str(folder / f'{video.stem}.mp4')
        subprocess.run([ffmpeg(), '-v', 'error', '-y', *source, *encoder, target], check=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, videos))
    return ''


def make_synthetic(units: Sequence[Unit], config: ClipsConfig, path: Path, *more: object) -> ShardResult:
    """Writes what `make_shard` writes of videos with three clips each, but for their content."""
    del more
    result = ShardResult(keys=['video', 'frames', 'height', 'width'])
    with ShardWriter(path) as writer:
        for unit in units:
            for i in range(3):
                writer.write(b'x')
                result.rows.append(
                    {
                        **{'source': unit.source, 'first_seconds': 2.0 * i, 'last_seconds': 2.0 * i + 2, 'fps': 24.0},
                        **{'caption': unit.caption, 'bytes': 1, 'fingerprint': f'{hash((unit.source, i)):016x}'[:16]},
                        **{'frames': config.frames, 'height': config.height, 'width': config.width, 'sharpness': 0.5},
                    }
                )
            result.units.append(UnitResult(clips=3, captioned=True))
        result.bytes = writer.close()
    return result


def time_units(count: int) -> None:
    """Plans, stops, continues and publishes, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'in').mkdir()
        for step in ('plan', 'half', 'rest', 'nothing'):
            if (child := os.fork()) == 0:
                started, before = time.monotonic(), time.process_time()
                run_step(folder, count, step)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
                seconds, cpu = time.monotonic() - started, time.process_time() - before
                print(f'{step}: {seconds:.1f} s, CPU {cpu:.1f} s, {memory:.0f} MB', flush=True)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, step
        size = sum(path.stat().st_size for path in (folder / 'out').glob('*.parquet'))
        shards = len(list((folder / 'out').glob('*.array_record')))
        print(f'{shards} shards; manifest and table of units: {size / 1e6:.1f} MB')


class StoppedError(Exception):
    """Ends a step."""


def run_step(folder: Path, count: int, step: str) -> None:
    plan_module.make_shard = make_synthetic
    config = ClipsConfig()
    names = [f'{i // 1000:04d}/video {i:09d}.mp4' for i in range(count)]
    videos = {name: (folder / 'in' / name, 5_000_000) for name in names}
    (folder / 'in' / 'captions.json').write_text(json.dumps({name: f'a caption of {name}' for name in names}))
    job = Job(folder / 'in', videos, {}, folder / 'out', config, {'config': {}}, overwrite=False)

    def make(plan: Plan, numbers: Sequence[int]) -> None:
        if step == 'plan':
            plan.make(0)
            raise StoppedError
        for number in numbers[: len(numbers) // 2] if step == 'half' else numbers:
            plan.make(number)
        if step == 'half':
            raise StoppedError

    try:
        outcomes = job.run(make, lambda outcome: print(f'  {outcome.records:,} clips'))
        assert step == 'nothing' or outcomes
    except StoppedError:
        pass


if __name__ == '__main__':
    sys.exit(main())
