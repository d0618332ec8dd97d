"""The work folder of the nightly job: the run under way, whose finished stages a restart does not repeat.

    lock                who builds
    run-<key>/          one run; the key is made of its inputs, so other inputs are another run
        run.json        what was decided so far
        training/       as of `model.training`, which goes on from its last state
        candidate/<id>/ the sealed bundle, there when complete
    last.json           how the last run ended, with every gate's check
    last.html           the same for a person

Every step that counts is one rename; whatever a kill leaves half done has another name and is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from index_builder.bundle_files import BUNDLE_ID, fsync
from model.checkpoint import recover_folder
from model.run_state import holds_state

LOCK = "lock"
LAST = "last.json"
REPORT = "last.html"
_RECORD = "run.json"


def key_of(inputs: dict[str, Any]) -> str:
    """The name of a run with these inputs: 16 hex digits."""
    text = json.dumps(inputs, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Run:
    """One run in the work folder."""

    def __init__(self, work: Path, key: str) -> None:
        """Begin the run, or go on with it; any other run in `work` is removed."""
        self.key = key
        self.folder = work / f"run-{key}"
        for other in work.glob("run-*"):
            if other != self.folder:
                shutil.rmtree(other)
        self.resumed = self._is_sound()
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.record("key", key)

    def _is_sound(self) -> bool:
        """Whether there is a record that can be read: a disk that filled up or failed may leave another."""
        try:
            return isinstance(json.loads((self.folder / _RECORD).read_text()), dict)
        except (OSError, ValueError):
            return False

    @property
    def training(self) -> Path:
        """The folder to train in, with what a kill left half written removed."""
        folder = self.folder / "training"
        if folder.exists():
            for name in ("state", "checkpoint"):
                recover_folder(folder / name)
            for leftover in folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not holds_state(folder):
                shutil.rmtree(folder)  # it had not saved anything yet, or the disk lost it
        return folder

    @property
    def candidate(self) -> Path | None:
        """The sealed bundle, once there is one."""
        folder = self.folder / "candidate"
        names = (
            [path for path in folder.iterdir() if BUNDLE_ID.fullmatch(path.name)] if folder.exists() else []
        )
        return names[0] if names else None

    def new_candidate(self) -> Path:
        """An empty folder to write a bundle in."""
        parent = self.folder / "candidate.new"
        shutil.rmtree(parent, ignore_errors=True)
        folder = parent / "bundle"
        folder.mkdir(parents=True)
        return folder

    def keep_candidate(self, sealed: Path) -> Path:
        """Give a sealed bundle, in what was `new_candidate`'s folder, its place."""
        fsync(sealed.parent)
        os.replace(sealed.parent, self.folder / "candidate")
        fsync(self.folder)
        return self.folder / "candidate" / sealed.name

    def recorded(self, name: str) -> Any:
        """What was recorded under `name`, or None."""
        return json.loads((self.folder / _RECORD).read_text()).get(name)

    def record(self, name: str, value: Any) -> None:
        """Remember `value`, on disk."""
        path = self.folder / _RECORD
        before = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, {**before, name: value})

    def remove(self) -> None:
        """The run ended: only its bundle in the store stays."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Replace a small file in one piece."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as handle:
        json.dump(content, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(beside, path)
    fsync(path.parent)
