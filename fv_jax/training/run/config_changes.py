"""What a changed configuration means for a run that is resumed, in words and before it happens."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fv_jax.core.config import to_dict
from fv_jax.training import optimizer
from fv_jax.training.run.setup import TrainConfig

# Fields that do not affect training: length, speed, devices, logging.
SAFE_TO_CHANGE = ('loop', 'parallel', 'data.loader.num_threads', 'data.loader.prefetch_batches')
# Learning rates that differ by less are the same one computed in another way.
_RATE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Change:
    """A field of the configuration whose value in the work directory differs from the requested one.

    Attributes:
      effect: what it does to the run from its next step on; '' for a change that explains itself.
      is_safe: whether training is unaffected.
      is_possible: whether the checkpoint can be resumed with it.
    """

    field: str
    old: Any
    new: Any
    effect: str = ''
    is_safe: bool = False
    is_possible: bool = True

    def under(self, prefixes: Sequence[str]) -> bool:
        """Returns whether the field is one of these, or in one of these sections."""
        return any(self.field == prefix or self.field.startswith(f'{prefix}.') for prefix in prefixes)

    def __str__(self) -> str:
        effect = f': {self.effect}' if self.effect else ''
        return f'config.{self.field} from {self.old!r} to {self.new!r}{effect}'


def compare(old: TrainConfig, new: TrainConfig, step: int) -> list[Change]:
    """Returns the changes from one configuration to another.

    Args:
      old: of the last launch.
      new: of this one.
      step: of the checkpoint that is resumed from; at 0 nothing has been trained yet.
    """
    return [_explain(change, old, new, step) for change in _differences(to_dict(old), to_dict(new))]


def _explain(change: Change, old: TrainConfig, new: TrainConfig, step: int) -> Change:
    if step == 0:
        return dataclasses.replace(change, is_safe=change.under(SAFE_TO_CHANGE))
    effect = next((find(old, new, step) for prefixes, find in _EFFECTS if change.under(prefixes)), '')
    safe = change.under(SAFE_TO_CHANGE) and not effect
    possible = not (change.under(_NEED_NEW_STATE) and effect)
    return dataclasses.replace(change, effect=effect, is_safe=safe, is_possible=possible)


def _differences(old: Any, new: Any, path: str = '') -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f'{path}.{key}' if path else key)
    elif old != new:
        yield Change(path, old, new)


# --- the effects, on a run that has a checkpoint ---


def _learning_rate(old: TrainConfig, new: TrainConfig, step: int) -> str:
    before, after = (float(optimizer.learning_rates(c.optim, c.loop.num_steps)(step)) for c in (old, new))
    if abs(after - before) <= _RATE_TOLERANCE * before:
        return ''
    ratio = f', {after / before:.2g} times' if before else ''
    return f'the learning rate of step {step + 1} becomes {after:.3g} in place of {before:.3g}{ratio}'


def _batches(old: TrainConfig, new: TrainConfig, step: int) -> str:
    before, after = old.data.loader.batch_size, new.data.loader.batch_size
    if before == after or new.data.token_budget is not None:
        return ''
    seen, first = step * before, step * after
    what = f'{first - seen} clips are skipped' if first > seen else f'{seen - first} clips are repeated'
    return f'{seen} clips have been trained on and the data continue at clip {first}: {what}'


def _order(old: TrainConfig, new: TrainConfig, step: int) -> str:
    return 'clips come in another order: some of this epoch are repeated or skipped'


def _noise(old: TrainConfig, new: TrainConfig, step: int) -> str:
    return f'the noise and times of all steps after {step} are others'


def _optimizer_state(old: TrainConfig, new: TrainConfig, step: int) -> str:
    has_average = [config.optim.ema_decay > 0 for config in (old, new)]
    if old.optim.algorithm == new.optim.algorithm and has_average[0] == has_average[1]:
        return ''
    return (
        'the checkpoint holds no state for it; start another --workdir from these parameters '
        '(--config.init_from=THIS_WORKDIR)'
    )


_NEED_NEW_STATE = ('optim.algorithm', 'optim.ema_decay')
_RATE_FIELDS = ('learning_rate', 'lr_schedule', 'warmup_steps', 'final_lr_ratio')
_SCHEDULE = ('loop.num_steps', *(f'optim.{name}' for name in _RATE_FIELDS))
_ORDER = (
    *('data.loader.seed', 'data.train', 'data.filter', 'data.drop_duplicates', 'data.buckets', 'data.token_budget'),
    'data.batch_multiple',
)
# Fields -> what a change of them does.
_EFFECTS: tuple[tuple[tuple[str, ...], Callable[[TrainConfig, TrainConfig, int], str]], ...] = (
    (_SCHEDULE, _learning_rate),
    (('data.loader.batch_size',), _batches),
    (_ORDER, _order),
    (('seed',), _noise),
    (_NEED_NEW_STATE, _optimizer_state),
)
