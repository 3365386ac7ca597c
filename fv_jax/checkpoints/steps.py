"""The steps of a run: which checkpoints are complete, which are damaged, and how they are removed.

Which folder is complete is asked of Orbax: locally by its name, in object storage by the file that a save writes last.
A checkpoint that failed verification stays where it is. RUN/damaged/STEP.txt says what is wrong with it, and as long as
that file exists it is not one of the run's steps.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath, holds_checkpoints

FOLDER = 'checkpoints'
DAMAGED = 'damaged'
COMMIT_FILE = ocp.path.atomicity.COMMIT_SUCCESS_FILE
TEMPORARY_SUFFIX = ocp.path.atomicity.TMP_DIR_SUFFIX


def check_supported(run: StoragePath) -> None:
    """Raises CheckpointError for a store that Orbax cannot read or write."""
    text = f'{run}: checkpoints can be in local folders and gs:// only; copy the run there'
    require(holds_checkpoints(run), text, CheckpointError)


@dataclasses.dataclass(frozen=True)
class Steps(ocp.path.step.NameFormat):
    """The steps of a run as Orbax's `CheckpointManager` asks for them (`find_all`), and as this package does.

    Orbax's own class asks for the properties of a bucket as well, which needs a right that reading and writing its
    objects does not.
    """

    run: StoragePath

    @property
    def folder(self) -> StoragePath:
        """The folder of the checkpoints."""
        return self.run / FOLDER

    def list_steps(self) -> list[int]:
        """Lists the steps of the complete, intact checkpoints, ascending; empty if there is no folder."""
        return sorted(found.step for found in self.find_all(self.folder))

    def list_damaged(self) -> set[int]:
        """Lists the steps that are marked as damaged."""
        return {int(path.stem) for path in (self.run / DAMAGED).glob('*.txt') if path.stem.isdigit()}

    def mark_damaged(self, step: int, problem: str) -> None:
        """Marks a checkpoint as damaged. Raises OSError."""
        files.make_folder(self.run / DAMAGED)
        files.write_text(self._mark(step), f'{problem}\n')

    def read_damage(self, step: int) -> str:
        """Returns what is wrong with a checkpoint that is marked as damaged."""
        return self._mark(step).read_text().strip()

    def remove(self, step: int) -> None:
        """Removes a checkpoint so that a killed process leaves none that looks complete. Raises OSError."""
        files.remove_folder(self.folder / str(step), COMMIT_FILE, TEMPORARY_SUFFIX)

    def remove_damaged(self, step: int) -> None:
        """Removes a checkpoint that is marked as damaged, and then the mark. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.remove(step)
        self._mark(step).unlink(missing_ok=True)

    def remove_unfinished(self, step: int | None = None) -> bool:
        """Removes what saves have left that did not complete, of a step or of all; returns whether there was any."""
        found = [
            path.get()
            for path in ocp.path.step.all_temporary_paths(self.folder)
            if step is None or path.get_final().name == str(step)
        ]
        for path in found:
            files.remove_folder(self.folder / path.name, suffix='')
        return bool(found)

    def _mark(self, step: int) -> StoragePath:
        return self.run / DAMAGED / f'{step}.txt'

    def build_name(self, step: int) -> str:
        """Returns the name of a step's folder: Orbax's protocol."""
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[ocp.path.step.Metadata]:
        """Finds the complete, intact checkpoints in the folder of the checkpoints: Orbax's protocol."""
        paths = []
        with contextlib.suppress(FileNotFoundError):
            paths = [path for path in self.folder.iterdir() if path.name.isdigit()]
        damaged = self.list_damaged() if paths else set()

        def describe(path: StoragePath) -> ocp.path.step.Metadata | None:
            complete = int(path.name) not in damaged and ocp.path.step.is_path_finalized(path)
            return self.find_step(base_path, int(path.name)) if complete else None

        return ocp.path.step.build_step_metadatas(paths, describe)

    def find_step(self, base_path: Any, step: int) -> ocp.path.step.Metadata:
        """Returns where a step is: Orbax's protocol. The caller has checked that it exists."""
        return ocp.path.step.Metadata(step, base_path / self.build_name(step))
