"""The folder of a run: what it is, what it has reached, and checkpoints to go on from.

    run.json           what the run is
    checkpoint-E-B/    after E epochs and B batches of the next, by Accelerate; it appears whole or not at
                       all, and says which run it is of: any other is refused
    log.jsonl          a line an epoch

A kill leaves the last checkpoint whole; what it was writing or removing beside that, the next clears away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import TrainingError
from fxprune.result.files import TEMPORARY, write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Checkpoints", "Progress"]

RUN, LOG, PROGRESS = "run.json", "log.jsonl", "progress.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    epoch, batch: where it goes on: the number of an epoch, and of a batch in it.
    updates: of the weights.
    sums, counts: of the losses of the epoch so far, by name, and of how many batches.
    seconds: of the epoch so far, on this process.
    log: the finished epochs.
    """

    epoch: int = 0
    batch: int = 0
    updates: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run in one folder; without a folder there are none."""

    def __init__(self, folder: Path | None, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.identity = ""

    def begin(self, identity: Mapping[str, Any], resume: bool) -> Progress:
        """Return where the run goes on, if there is a checkpoint of it; else write down what it is.

        Raises:
            TrainingError: the folder holds another run, or this one and `resume` is not given.
        """
        if self.folder is None:
            if resume:
                raise TrainingError("resume=True needs folder=, where the run left its checkpoints")
            return Progress()
        last = self.last
        if last is not None:  # else whatever was begun here has left nothing to lose
            self._check(self._known(last), json.loads(json.dumps(identity)), resume)
        self.identity = json.dumps(identity, indent=1)
        self.accelerator.wait_for_everyone()  # all have read before one writes
        if self.accelerator.is_main_process and last is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / RUN, self.identity)
        if last is None:
            return Progress()
        try:
            return Progress(**json.loads((last / PROGRESS).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{last} is no whole checkpoint: {error}; remove it to go on") from error

    @property
    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        found = sorted(self.folder.glob(f"{PREFIX}[0-9]*-[0-9]*")) if self.folder else []
        return found[-1] if found else None

    def restore(self) -> None:
        """Load the newest checkpoint into what the accelerator has prepared; random numbers as well.

        Raises:
            TrainingError: it is damaged.
        """
        try:
            self.accelerator.load_state(str(self.last))
        except Exception as error:  # whatever reading a damaged file raises
            raise TrainingError(f"{self.last} can't be loaded: {error}; remove it to go on") from error

    def write(self, progress: Progress) -> None:
        """Write a checkpoint beside the others, move it to its place, then remove the older ones."""
        if self.folder is None:
            return
        beside = self.folder / f"{TEMPORARY}checkpoint"
        place = self.folder / f"{PREFIX}{progress.epoch:06d}-{progress.batch:08d}"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(beside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(beside))
        self.accelerator.wait_for_everyone()
        if main and place != self.last:
            (beside / PROGRESS).write_text(json.dumps(asdict(progress)))
            (beside / RUN).write_text(self.identity)
            _flush(path for path in beside.rglob("*") if path.is_file())
            os.replace(beside, place)
            _flush([self.folder])
            for old in self.folder.glob(f"{PREFIX}[0-9]*"):
                if old != place:
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def write_log(self, progress: Progress) -> None:
        """Write the finished epochs, a line of JSON each."""
        if self.folder is not None and self.accelerator.is_main_process:
            write_whole(self.folder / LOG, "".join(json.dumps(line) + "\n" for line in progress.log))

    def _known(self, checkpoint: Path) -> dict[str, Any]:
        """Return what run a checkpoint is of: the folder's own, where it is an older one that doesn't say."""
        assert self.folder is not None
        inside = checkpoint / RUN
        path = inside if inside.exists() else self.folder / RUN
        try:
            known: dict[str, Any] = json.loads(path.read_text())
            return known
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} can't be read: {error}") from error

    def _check(self, known: Mapping[str, Any], identity: Mapping[str, Any], resume: bool) -> None:
        other = [name for name in {**known, **identity} if known.get(name) != identity.get(name)]
        if other:
            said = "; ".join(_difference(n, known.get(n), identity.get(n)) for n in other)
            raise TrainingError(
                f"{self.folder} holds another run, and was left as it is: {said}; go on as it was begun, or "
                f"give another folder"
            )
        if not resume and self.last is not None:
            raise TrainingError(
                f"{self.folder} holds this run already: go on with resume (--resume), or give another folder"
            )


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        return ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed)
    return f"the {name} is another"


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
