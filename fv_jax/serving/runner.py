"""What the job server needs of the code that makes videos: a `Runner`. The server knows no network and no device."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from fv_jax.core.paths import StoragePath
from fv_jax.sampling.progress import OnStep
from fv_jax.serving.requests import JobRequest


@dataclasses.dataclass(frozen=True)
class Work:
    """What a job computes, by the planner's account.

    Attributes:
      kind: of the networks that compute it; work of one kind is computed at about the same rate.
      shape: names the work; jobs of one shape take the same time.
      flops: model FLOPs.
      planned_seconds: at the roofline of the chips; None for chips whose rates are not known.
    """

    kind: str
    shape: str
    flops: float
    planned_seconds: float | None = None


class Runner(Protocol):
    """Makes videos, one at a time.

    Attributes:
      setup: names the weights and the devices; measured times of other setups do not count.
      num_devices: that a job takes.
    """

    setup: str
    num_devices: int

    def load(self) -> None:
        """Loads the networks. Called once, by the thread that calls `run`."""

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns the settings of each kind of job that the weights allow, by kind."""

    def complete(self, request: JobRequest, source: JobRequest | StoragePath | None) -> JobRequest:
        """Returns a request with size, frames and number of steps, whose values were checked.

        Args:
          request: of a user.
          source: the complete request of the preview that is enhanced, or the uploaded file.

        Raises:
          ValueError: a value that is not possible; the message states the value, the limit and the fix.
          TooLargeError, UnsupportedTypeError: an upload that is refused.
        """

    def work(self, request: JobRequest) -> Work:
        """Returns the work of a complete request."""

    def run(self, request: JobRequest, source: StoragePath | None, folder: StoragePath, on_step: OnStep) -> float:
        """Makes what a complete request asks for.

        Args:
          request: the request.
          source: the folder of the preview that is enhanced, or the uploaded file.
          folder: does not exist; it appears, complete, with the file `request.result` in it.
          on_step: called after every step of the sampler, with the numbers of steps done and of all. What it raises
            ends the job.

        Returns:
          The seconds that were spent compiling.

        Raises:
          ValueError, OSError, jax.errors.JaxRuntimeError: the job cannot be done.
        """
