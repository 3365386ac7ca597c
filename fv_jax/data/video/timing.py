"""The times of a video's frames: the rate that they have, and the choice of frames for another rate."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

# Containers round timestamps to a millisecond; of two equally near frames, the earlier is shown.
TIE = 2e-3
# A jump of the clock back by more seconds begins a new recording; smaller ones are errors of single timestamps.
_NEW_RECORDING = 1
# The rates of nearly all videos.
_COMMON_RATES = tuple(
    Fraction(*rate)
    for rate in (
        *((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1)),
        *((5, 1), (10, 1), (12, 1), (15, 1), (20, 1), (100, 1), (120000, 1001), (120, 1), (240, 1)),
    )
)


@dataclasses.dataclass
class Clock:
    """Makes the times of frames, or of packets of audio, increase.

    Attributes:
      period: between the last two frames; at first, of the rate that the file states.
      last: the time of the last frame.
      shift: what is added to times since the clock of the file jumped back, where recordings were joined.
    """

    period: Fraction
    last: Fraction | None = None
    shift: Fraction = Fraction(0)

    def follow(self, time: Fraction | None) -> Fraction:
        """Returns the time of the next frame; one without a time follows as the one before it did."""
        if self.last is None:
            self.last = time or Fraction(0)
            return self.last
        expected = self.last + self.period
        time = expected if time is None else time + self.shift
        if time <= self.last:
            if time < self.last - _NEW_RECORDING:
                self.shift += expected - time
            time = expected
        self.period, self.last = time - self.last, time
        return time


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of all frames of a video.

    Attributes:
      frames: how many there are.
      fps: frames per second: the constant rate, or the mean of a variable one.
      usual_fps: the rate that most frames follow each other at; the same as `fps` if the rate is constant.
      is_constant: whether all frames are within 2 ms of a constant rate; containers round to a millisecond.
      is_even: whether all frames are within a quarter of a frame of a constant rate.
    """

    frames: int
    fps: Fraction
    usual_fps: Fraction
    is_constant: bool
    is_even: bool


def measure(seconds: Sequence[float], stated: Iterable[Fraction | None]) -> Timing:
    """Computes the rate of frames.

    Args:
      seconds: the time of each frame, increasing.
      stated: rates that the file states; of a rate that agrees with the times the exact value is taken from here, and
        for a single frame, which has no rate, the first.
    """
    seconds, stated = np.asarray(seconds, float), [Fraction(rate) for rate in stated if rate]
    frames = len(seconds)
    if frames < 2:
        fps = next(iter(stated), Fraction(0))
        return Timing(frames, fps, fps, is_constant=True, is_even=True)
    mean = Fraction((frames - 1) / float(seconds[-1] - seconds[0]))
    mean = mean.limit_denominator(1001) or mean  # which rounds a frame in half an hour to none
    candidates = (*stated, *_COMMON_RATES, mean)
    deviations = [_deviation(seconds, fps) for fps in candidates]
    # The first that is as good as the best one: the error of times in milliseconds is half of one.
    best = next(index for index, off in enumerate(deviations) if off <= min(deviations) + 5e-4)
    fps, off = candidates[best], deviations[best]
    if off <= 0.25 / fps:
        return Timing(frames, fps, fps, is_constant=off <= TIE, is_even=True)
    return Timing(frames, mean, _usual_rate(np.diff(seconds), stated), is_constant=False, is_even=False)


def _deviation(seconds: np.ndarray, fps: Fraction) -> float:
    """Returns the largest distance in seconds of a frame from the nearest even spacing at a rate."""
    off = seconds - np.arange(len(seconds)) / float(fps)
    return float(off.max() - off.min()) / 2


def _usual_rate(intervals: np.ndarray, stated: Iterable[Fraction]) -> Fraction:
    median = np.median(intervals)
    similar = intervals[np.abs(intervals - median) <= median / 4]
    rate = Fraction(1 / float(similar.mean()))
    nearest = min((*stated, *_COMMON_RATES), key=lambda common: abs(common / rate - 1))
    return nearest if abs(nearest / rate - 1) < 0.015 else rate.limit_denominator(1001)


def nearest_frames(seconds: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the index of the frame to show at each of the `wanted` times, which are evenly spaced.

    It is the frame whose time is nearest, but none that begins more than half of the spacing later: a frame that stays
    for long is shown until the next one begins.
    """
    after = np.clip(np.searchsorted(seconds, wanted), 0, len(seconds) - 1)
    before = np.maximum(after - 1, 0)
    early = seconds[after] - wanted
    soon = early <= (wanted[1] - wanted[0]) / 2 + TIE if len(wanted) > 1 else True
    return np.where((early < wanted - seconds[before] - TIE) & soon, after, before)


def durations(frames: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yields (time, duration) of each frame in seconds: how long it is shown before the next one.

    Args:
      frames: (time, stated duration) of each frame; the duration counts for the last one, unless it is 0.
    """
    previous = 1.0 / 25
    for this, following in itertools.pairwise(itertools.chain(frames, [None])):
        previous = following[0] - this[0] if following is not None else this[1] or previous
        yield this[0], previous
