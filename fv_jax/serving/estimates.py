"""What jobs cost and when they are done.

The basis of an estimate is the first of these that is known:

    measured    the median time of finished jobs of the same shape
    planned     the roofline of the chips, by the planner's account (`planning`)
    scaled      the FLOPs of the job at the measured rate of jobs of other shapes, if possible of the same networks

Compilation is not counted, and the first job of a shape in a process only where there is no other: it also traces
the programs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from fv_jax.serving.job_store import Job, JobStore
from fv_jax.serving.runner import Work

Basis = Literal['measured', 'planned', 'scaled']


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
      seconds: on all devices.
      chip_seconds: seconds times devices.
      basis: how the seconds are known.
    """

    seconds: float
    chip_seconds: float
    basis: Basis


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Estimates from measured times and the planner's account.

    Attributes:
      store: has the measured times.
      setup, num_devices: of the runner.
    """

    store: JobStore
    setup: str
    num_devices: int

    def cost(self, work: Work) -> Cost | None:
        """Returns what work takes; None where nothing was measured and the rates of the chips are not known."""
        if (seconds := self.store.median_seconds(self.setup, work.shape)) is not None:
            return self._cost(seconds, 'measured')
        if work.planned_seconds is not None:
            return self._cost(work.planned_seconds, 'planned')
        rate = self.store.measured_rate(self.setup, work.kind)
        return self._cost(work.flops / rate, 'scaled') if rate else None

    def _cost(self, seconds: float, basis: Basis) -> Cost:
        return Cost(seconds, seconds * self.num_devices, basis)

    def seconds_left(self, active: Sequence[Job], done: float) -> dict[str, float | None]:
        """Returns when each active job is done, in seconds from now, by its id.

        Args:
          active: the job in progress, if there is one, and the queue, in order.
          done: the part of the job in progress that is done, from 0 to 1.
        """
        left, total = {}, 0.0
        costs: dict[Work, Cost | None] = {}
        for job in active:
            if job.work not in costs:
                costs[job.work] = self.cost(job.work)
            if costs[job.work] is None:
                return left | dict.fromkeys((each.id for each in active[len(left) :]), None)
            total += costs[job.work].seconds * (1 - done if job.status == 'in_progress' else 1)
            left[job.id] = total
        return left
