"""A set of shards from the videos of a folder: planned, made, published; continued and added to by the same call."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fv_jax.core import file_locks, files
from fv_jax.core.checks import error_context, require
from fv_jax.core.console import printable
from fv_jax.core.paths import StoragePath
from fv_jax.data.preparation import sets as sets_lib
from fv_jax.data.preparation.outcome import Outcome, summarize
from fv_jax.data.preparation.plan import PLAN, Header, Plan, write_plan
from fv_jax.data.preparation.sets import Sets
from fv_jax.data.preparation.units import Footage, plan_units
from fv_jax.data.video.captions import Captions, SidecarError
from fv_jax.data.video.clips import ClipsConfig

log = logging.getLogger(__name__)

Make = Callable[[Plan, Sequence[int]], None]


class UnusableError(ValueError):
    """Raised where the videos, their captions or the sets that exist have to change before anything can be written."""


class NothingWrittenError(UnusableError):
    """Raised where no video gives a clip."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What shards are made of.

    Attributes:
      root: the folder of the videos; captions are searched up to it.
      videos: name of a video -> its path and its size in bytes.
      skipped: file -> why it is not among them.
      output: the folder of the sets.
      config: of the clips.
      made_with: the configuration and the fingerprints of encoders, as JSON gives them back.
      overwrite: whether sets of the name are replaced.
    """

    root: StoragePath
    videos: Mapping[str, tuple[StoragePath, int]]
    skipped: Mapping[str, str]
    output: StoragePath
    config: ClipsConfig
    made_with: Mapping[str, Any]
    overwrite: bool = False

    def run(self, make: Make, report: Callable[[Outcome], None]) -> list[Outcome]:
        """Continues a plan that is not complete, and makes a set of the videos that no set has.

        Args:
          make: makes shards of a plan, those of the given numbers.
          report: is given the outcome of each set, when it is written.

        Returns:
          The outcome of each set that was written. If none was, one without clips where files are skipped, or nothing.

        Raises:
          UnusableError: no video gives a clip, or sets of this name were made with other settings.
          OSError: a file cannot be written, or object storage does not answer.
        """
        made = files.make_folder(self.output)
        outcomes: list[Outcome] = []
        try:
            with _lock(self.output, self.config.name):
                while True:
                    continues = (sets_lib.work_folder(self.output, self.config.name) / PLAN).exists()
                    plan = self._next_plan(overwrite=self.overwrite and not outcomes)
                    if not isinstance(plan, Plan):
                        outcomes += [plan] if plan else []
                        break
                    try:
                        outcomes.append(self._complete(plan, make))
                    except NothingWrittenError as error:
                        if not outcomes:
                            raise
                        log.info(str(error))
                        break
                    report(outcomes[-1])
                    if plan.header.replaces or not continues:  # else there may be new videos
                        break
        finally:
            files.remove_empty(made)
        return outcomes

    def _next_plan(self, overwrite: bool) -> Plan | Outcome | None:
        with error_context('', error=UnusableError):
            return self._open_plan(overwrite)

    def _open_plan(self, overwrite: bool) -> Plan | Outcome | None:
        """Opens the plan that is not complete, or makes one; None, or what is skipped, if there is nothing to add."""
        sets = sets_lib.find_sets(self.output, self.config.name)
        if (sets.work_folder / PLAN).exists():
            plan = Plan(sets.work_folder)
            if plan.header.replaces or not overwrite:
                _check(plan.header.made_with, self.made_with, f'{sets.work_folder}: was begun')
                plan.remove_unfinished()
                left = len(plan.missing())
                log.info(f'continuing {plan.header.name}: {plan.num_shards - left} of {plan.num_shards} shards exist')
                return plan
            sets_lib.discard(sets.work_folder)
        known = {} if overwrite else self._check_sets(sets)
        new = {name: self.videos[name] for name in self.videos if name not in known}
        if known and new:
            log.info(f'adding {len(new)} video(s); {len(known)} were prepared before')
        footage, header = self._read_captions(new, sets, overwrite)
        for name, size in known.items():
            if name in self.videos and self.videos[name][1] != size:
                header.skipped[name] = (
                    f'another file of this name, of {size} bytes, was prepared before; rename it, or pass '
                    '--overwrite to prepare all again'
                )
        units = plan_units(footage, self.config)
        if not units:
            require(known, _nothing(header.skipped, len(self.videos)), NothingWrittenError)
            _log_skipped(header.skipped)
            return Outcome(skipped=header.skipped) if header.skipped else None
        return write_plan(sets.work_folder, header, units, self.config)

    def _check_sets(self, sets: Sets) -> dict[str, int]:
        """Returns the videos of the sets that exist. Raises ValueError for sets that cannot be added to."""
        shards = len([name for name in sets.files if name.endswith('.array_record')])
        wrong = (
            f'{sets.folder}: holds {shards} shard(s) named {sets.name} without {sets.name}.json; choose another '
            'folder or overwrite them (--overwrite)'
        )
        require(sets.names or not sets.files, wrong)
        known = sets.read_sources()
        for name, index in sets.indexes().items():
            found = {key: index[key] for key in ('config', 'latents', 'text') if key in index}
            if 'text' in found:
                found['text'] = {key: value for key, value in found['text'].items() if key != 'truncated'}
            _check(found, self.made_with, f'{sets.folder / name}.json: was made')
        return known

    def _read_captions(
        self, videos: Mapping[str, tuple[StoragePath, int]], sets: Sets, replaces: bool
    ) -> tuple[dict[str, Footage], Header]:
        """Reads the captions. A video whose own .txt cannot be read is skipped; an unreadable table is an error."""
        captions, footage = Captions(self.root), {}
        header = Header(
            sets.name if replaces else sets.next_name, dict(self.made_with), replaces, dict(self.skipped), []
        )
        for name, (path, size) in videos.items():
            try:
                printable_name = printable(name)
                require(printable_name == name, 'its name is not UTF-8; rename it', SidecarError)
                caption = captions.find(path)
                _check_unicode(caption)
                footage[name] = Footage(path, size, caption)
            except SidecarError as error:
                header.skipped[printable_name] = str(error)
        if len(videos) > 1:
            header.captions.extend(captions.describe_problems([path for path, _ in videos.values()]))
        return footage, header

    def _complete(self, plan: Plan, make: Make) -> Outcome:
        """Makes the shards of a plan that are missing, and publishes the set."""
        try:
            make(plan, plan.missing())
            left = plan.missing()
            if left:
                raise OSError(
                    f'{len(left)} of {plan.num_shards} shards could not be made; the same command tries again'
                )
        except BaseException:
            with contextlib.suppress(OSError):
                plan.remove_unfinished()
                if len(plan.missing()) == plan.num_shards:
                    sets_lib.discard(plan.folder)
            raise
        outcome = summarize(plan)
        if not outcome.records:
            sets_lib.discard(plan.folder)
            raise NothingWrittenError(_nothing(outcome.skipped, len(outcome.skipped)))
        summary = {
            'files': outcome.files_used,
            'captioned_clips': outcome.captioned_clips,
            'black_clips': outcome.black_clips,
            'skipped': outcome.skipped,
            'damaged': outcome.damaged,
            **plan.header.made_with,
        }
        if 'text' in summary:
            summary['text'] = summary['text'] | {'truncated': outcome.truncated}
        replaced = sets_lib.find_files(plan.folder.parent, self.config.name) if plan.header.replaces else ()
        sets_lib.write_set(plan, replaced, summary)
        return outcome


@contextlib.contextmanager
def _lock(folder: StoragePath, name: str) -> Iterator[None]:
    """A context in which no other process of this host writes sets of a name in a local folder."""
    if files.is_remote(folder):
        yield
        return
    path = folder / f'.{name}.lock'
    descriptor = file_locks.acquire_lock(path, wait=False)
    require(descriptor is not None, f'{folder}: another process prepares {name} there', UnusableError)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file_locks.release_lock(descriptor)


def _check_unicode(caption: str | None) -> None:
    try:
        (caption or '').encode()
    except UnicodeEncodeError:
        raise SidecarError('its caption cannot be encoded: the text is not valid Unicode') from None


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    differences = list(sets_lib.differences(found, wanted))
    more = f', and {len(differences) - 1} more' if len(differences) > 1 else ''
    require(
        not differences,
        f'{what} with other settings: {"".join(differences[:1])}{more}; choose another --output or --config.name, '
        'or pass --overwrite to replace it',
    )


def _nothing(skipped: Mapping[str, str], count: int) -> str:
    reasons = '; '.join(f'{name}: {reason}' for name, reason in list(skipped.items())[:3])
    more = f' and {len(skipped) - 3} more' if len(skipped) > 3 else ''
    return f'nothing written: {len(skipped)} of {count} files skipped ({reasons}{more})'


def _log_skipped(skipped: Mapping[str, str]) -> None:
    for name, reason in skipped.items():
        log.info(f'skipped: {name}: {reason}')
