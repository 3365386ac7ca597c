"""The trainer's configuration: how long, how often, and what happens when something fails."""

import dataclasses

from fv_jax.core.config import Auto, check_range
from fv_jax.training.monitoring.anomalies import BadStepsConfig
from fv_jax.training.monitoring.collapse import CollapseMonitorConfig

MAX_STEPS = 2**31  # int32 counts them
_FROM_1 = ('num_steps', 'microbatches', 'log_every', 'save_every', 'max_to_keep')
_FROM_0 = ('eval_every', 'save_minutes', 'keep_period', 'max_failed_saves', 'stall_timeout_minutes')


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The training loop.

    Attributes:
      num_steps: optimizer steps of the whole run.
      microbatches: each step's batch is split into this many, one after the other: the memory of one microbatch, the
        gradient of the whole batch. A frozen or sharded network is gathered again for each. 'auto' chooses, at the
        start of the run, the smallest number with which the step fits the memory of a device (`planning/fitting`).
      log_every, eval_every, save_every: in steps; eval_every 0 never evaluates. The last step is always saved.
      save_minutes: also saves this long after the last save; 0 does not.
      max_to_keep: number of the newest checkpoints that are kept.
      keep_period: checkpoints of steps that are multiples of it are kept as well; 0 keeps no others.
      max_failed_saves: number of consecutive failed saves that the run survives; one more ends it.
      stall_timeout_minutes: time without any progress after which the process ends; 0 waits for ever.
      collapse_monitor: limits of the metrics of an evaluation.
      bad_steps: what happens at non-finite losses and gradients.
    """

    num_steps: int
    microbatches: int | Auto = 1
    log_every: int = 1
    eval_every: int = 0
    save_every: int = 1000
    save_minutes: float = 0.0
    max_to_keep: int = 3
    keep_period: int = 0
    max_failed_saves: int = 3
    stall_timeout_minutes: float = 30.0
    collapse_monitor: CollapseMonitorConfig = dataclasses.field(default_factory=CollapseMonitorConfig)
    bad_steps: BadStepsConfig = dataclasses.field(default_factory=BadStepsConfig)

    def __post_init__(self):
        check_range(self, *_FROM_1, low=1)
        check_range(self, *_FROM_0, low=0)
        check_range(self, 'num_steps', below=MAX_STEPS)
