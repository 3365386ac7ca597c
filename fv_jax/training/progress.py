"""What a run remembers beside its numbers. A checkpoint has it as JSON, so that a resumed run remembers it too."""

import dataclasses
from collections.abc import Mapping
from typing import Any

PROGRESS = 'progress'  # its name in a checkpoint's JSON


@dataclasses.dataclass
class Progress:
    """order: of the data and the noise: 0, and one more each time that the run was rolled back.
    bad_steps, spikes, bundles: how many there were.
    losses: the last good ones, which spikes are measured by.
    best: the lowest loss of each tenth of t, which the alarm is measured by.
    update_ratio: the largest update since the last evaluation, relative to the parameters.
    """

    order: int = 0
    bad_steps: int = 0
    spikes: int = 0
    bundles: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    update_ratio: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> 'Progress':
        """From a checkpoint's JSON; what it does not say is as in a new run."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
