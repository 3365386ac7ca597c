"""Run state besides arrays, stored as JSON in each checkpoint so that a resumed run continues with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

PROGRESS = 'progress'  # key in a checkpoint's JSON


@dataclasses.dataclass
class Progress:
    """Counts and statistics of a run.

    Attributes:
      num_rollbacks: selects the order of the data and the noise; 0 in a run that was never rolled back.
      bad_steps, spikes: number of steps with each kind of anomaly.
      num_dumps: number of steps that were stored for a replay.
      losses: the last good losses, which spikes are measured against.
      best: the lowest loss in each decile of t, by metric name, for the collapse monitor.
      update_ratio: norm of the largest update since the last evaluation, relative to that of the parameters.
    """

    num_rollbacks: int = 0
    bad_steps: int = 0
    spikes: int = 0
    num_dumps: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    update_ratio: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'Progress':
        """Builds it from a checkpoint's JSON. Absent fields get their defaults; unknown ones are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-ready dict."""
        return dataclasses.asdict(self)
