"""Makes the shards of a plan by Apache Beam (extra `beam`), on one machine or many.

The pipeline has one element for each shard that is missing. A worker reads the plan from its folder and makes the shard
there, as a local process does; nothing but numbers passes between workers. Output and input have to be where all
workers reach them: in object storage, or in a file system that they share.

A shard that cannot be made does not end the pipeline: its error is written to FAILED in the folder of the plan, one
JSON object a line, and the other shards are made. The same command then tries it again.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from fv_jax.core import files
from fv_jax.core.checks import one_line, require
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.shards.shard_files import expanded_path

log = logging.getLogger(__name__)

FAILED = 'failed.jsonl'
# Their options are all known here; those of others may be read by a server of theirs.
_PYTHON_RUNNERS = ('DirectRunner', 'DataflowRunner')


def parse_options(runner: str, options: Sequence[str]) -> Any:
    """Returns the `PipelineOptions` of a runner.

    Args:
      runner: of Beam, by name.
      options: of the runner, as on a command line.

    Raises:
      ValueError: Beam is not installed, or it does not know the runner or an option.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise ValueError("needs Apache Beam: pip install 'fv_jax[beam]'") from None
    parsed = PipelineOptions([f'--runner={runner}', *options])
    try:
        create_runner(runner)
        known = parsed.get_all_options(drop_default=True)
        given = parsed.get_all_options(drop_default=True, retain_unknown_options=True)
    except SystemExit:
        raise ValueError(f'{" ".join(options)}: an option has a value that Beam cannot read') from None
    except (ValueError, ImportError) as error:
        raise ValueError(one_line(error)) from None
    unknown = ', '.join(f'--{name}' for name in sorted(set(given) - set(known)))
    require(not unknown or runner not in _PYTHON_RUNNERS, f'{unknown}: not an option of {runner}')
    if unknown:
        log.info(f'note: {unknown}: unknown to Beam, and passed on to {runner}')
    return parsed


def make_shards(plan: Plan, numbers: Sequence[int], runner: str, options: Sequence[str]) -> None:
    """Makes shards of a plan.

    Args:
      plan: the plan, where workers can read it.
      numbers: of the shards.
      runner, options: as in `parse_options`.

    Raises:
      ValueError: as of `parse_options`.
      OSError: shards could not be made; the message has the first error.
    """
    parsed, folder = parse_options(runner, options), str(plan.folder)
    import apache_beam as beam

    class MakeShards(beam.DoFn):
        """Makes a shard in the plan's folder; yields what could not be made."""

        def setup(self) -> None:
            self.plan = Plan(expanded_path(folder))

        def process(self, number: int) -> Iterator[dict[str, Any]]:
            try:
                self.plan.make(number)
            except Exception as error:
                yield describe_failure(self.plan, number, error)

    def write_failures(failures: Sequence[dict[str, Any]]) -> None:
        text = ''.join(json.dumps(failure) + '\n' for failure in sorted(failures, key=lambda one: one['shard']))
        files.write_text(expanded_path(folder) / FAILED, text)

    with beam.Pipeline(options=parsed) as pipeline:
        _ = (
            pipeline
            | 'Shards' >> beam.Create(list(numbers))
            | 'Distribute' >> beam.Reshuffle()
            | 'MakeShards' >> beam.ParDo(MakeShards())
            | 'Failures' >> beam.combiners.ToList()
            | 'WriteFailures' >> beam.Map(write_failures)
        )
    failures = (plan.folder / FAILED).read_text().splitlines()
    require(
        not failures,
        f'{len(failures)} of {len(numbers)} shards could not be made, see {plan.folder / FAILED}; the first: '
        f'{"".join(failures[:1])}',
        OSError,
    )


def describe_failure(plan: Plan, number: int, error: Exception) -> dict[str, Any]:
    """Returns the row of a shard that could not be made: its number, its videos and the error."""
    sources = sorted({unit.source for unit in plan.units(number)})
    return {'shard': number, 'sources': sources, 'error': f'{type(error).__name__}: {one_line(error)}'}
