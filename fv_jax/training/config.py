"""The trainer's configuration: how long, how often, and what happens when something fails."""

import dataclasses

from fv_jax.core.config import check_range
from fv_jax.training.monitoring.anomalies import BadStepsConfig
from fv_jax.training.monitoring.collapse import AlarmConfig

MAX_STEPS = 2**31  # int32 counts them
_FROM_1 = ('num_steps', 'microbatches', 'log_every', 'save_every', 'keep')
_FROM_0 = ('eval_every', 'save_minutes', 'keep_every', 'failed_saves', 'stuck_minutes')


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The training loop.

    Attributes:
      num_steps: optimizer steps of the whole run.
      microbatches: each step's batch is split into this many, one after the other: the memory of one microbatch, the
        gradient of the whole batch. A frozen or sharded network is gathered again for each.
      log_every, eval_every, save_every: in steps; eval_every 0 never evaluates. The last step is always saved.
      save_minutes: also saves this long after the last save; 0 does not.
      keep: number of checkpoints that are kept. keep_every: checkpoints of its multiples, in steps, are kept as well; 0
        keeps none.
      failed_saves: consecutive failed saves after which the run stops.
      stuck_minutes: time without any progress after which the process ends; 0 waits for ever.
      alarm: when an evaluation reports a collapse. bad_steps: what happens at non-finite losses and gradients.
    """

    num_steps: int
    microbatches: int = 1
    log_every: int = 1
    eval_every: int = 0
    save_every: int = 1000
    save_minutes: float = 0.0
    keep: int = 3
    keep_every: int = 0
    failed_saves: int = 3
    stuck_minutes: float = 30.0
    alarm: AlarmConfig = dataclasses.field(default_factory=AlarmConfig)
    bad_steps: BadStepsConfig = dataclasses.field(default_factory=BadStepsConfig)

    def __post_init__(self):
        check_range(self, *_FROM_1, low=1)
        check_range(self, *_FROM_0, low=0)
        check_range(self, 'num_steps', below=MAX_STEPS)
