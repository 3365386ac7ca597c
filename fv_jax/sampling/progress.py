"""Progress of sampling: a bar of steps with the time left, in a terminal or a notebook."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import tqdm

OnStep = Callable[[int, int], None]  # (number of steps done, number of all)
Progress = Callable[[str, int], AbstractContextManager[OnStep]]  # (what is sampled, number of steps)
StepProgress = Callable[[], AbstractContextManager[OnStep]]  # of what is known to be sampled


@contextlib.contextmanager
def step_bar(name: str, num_steps: int) -> Iterator[OnStep]:
    """Shows a bar on stderr while it is a terminal or a notebook's, and nothing in a file or a pipe.

    The first step includes compilation, so that the time left is too long at first.

    Args:
      name: of what is sampled.
      num_steps: of the sampler.

    Yields:
      A function to call after every step.
    """
    shown = sys.stderr.isatty() or 'ipykernel' in sys.modules
    with tqdm.tqdm(total=num_steps, desc=name, unit='step', leave=False, disable=not shown, dynamic_ncols=True) as bar:
        yield lambda done, total: bar.update(done - bar.n)


def ignore_steps(done: int, total: int) -> None:
    """Shows nothing of a step."""
    del done, total


@contextlib.contextmanager
def no_bar(name: str = '', num_steps: int = 0) -> Iterator[OnStep]:
    """Shows nothing. Arguments are those of `step_bar`."""
    del name, num_steps
    yield ignore_steps
