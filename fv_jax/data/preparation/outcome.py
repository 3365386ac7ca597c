"""The results of the videos of a plan, from those of their units."""

import dataclasses

from fv_jax.data.preparation.make_shard import UnitResult
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.preparation.units import Unit

_Part = tuple[Unit, UnitResult]


@dataclasses.dataclass
class Outcome:
    """The results of the videos of a plan.

    Attributes:
      records: how many clips there are.
      shards: that have clips.
      files_used, captioned_files: videos that gave clips, and those of them with captions.
      captioned_clips, black_clips: clips with captions; clips that were dropped because of black frames.
      skipped: file -> why it gives no clips.
      damaged: file of clips -> where it is damaged, and what is not used of it.
      truncated: file -> what the text encoder cut off its caption.
      captions: what is odd about the tables of captions, in lines.
    """

    records: int = 0
    shards: int = 0
    files_used: int = 0
    captioned_files: int = 0
    captioned_clips: int = 0
    black_clips: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    truncated: dict[str, str] = dataclasses.field(default_factory=dict)
    captions: list[str] = dataclasses.field(default_factory=list)


def summarize(plan: Plan) -> Outcome:
    """Adds up the results of the units of a complete plan, video by video."""
    outcome, before = Outcome(skipped=dict(plan.header.skipped), captions=plan.header.captions), ''
    parts: list[_Part] = []
    for number, result in enumerate(plan.results()):
        outcome.records += len(result.rows)
        outcome.shards += bool(result.rows)
        for unit, found in zip(plan.units(number), result.units, strict=True):
            if unit.source != before and parts:
                _add_video(outcome, before, parts)
                parts = []
            before = unit.source
            parts.append((unit, found))
    if parts:
        _add_video(outcome, before, parts)
    return outcome


def _add_video(outcome: Outcome, name: str, parts: list[_Part]) -> None:
    results = [result for _, result in parts]
    clips = sum(result.clips for result in results)
    outcome.black_clips += sum(result.black for result in results)
    outcome.captioned_clips += sum(result.clips for result in results if result.captioned)
    failed = [result.failed for result in results if result.failed]
    if not clips or (failed and len(parts) == 1):
        outcome.skipped[name] = (failed or [result.empty for result in results])[0]
        return
    outcome.files_used += 1
    outcome.captioned_files += results[0].captioned
    problems = [
        (f'from {unit.first:.0f} s on: ' if unit.part and result.failed else '') + (result.failed or result.damaged)
        for unit, result in parts
        if result.failed or result.damaged
    ]
    if problems:
        outcome.damaged[name] = '; '.join(problems)
    if results[0].truncated:
        outcome.truncated[name] = results[0].truncated
