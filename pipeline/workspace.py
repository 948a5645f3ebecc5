"""A run's folder: stage outputs addressed by what went in, one build at a time, atomic writes.

root/.lock                       held while a build runs; vanishes with its process
root/.stages/NAME/KEY/           a finished stage: its files and stage.json with their digests
root/.stages/NAME/KEY.partial/   unfinished work; survives a kill, so its action can resume
root/...                         what the user came for: published copies (hard links)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import fdda_deploy
from fdda_deploy.durable import TEMP_SUFFIX, sync
from fdda_deploy.errors import WorkspaceError
from fdda_deploy.pipeline.durable import atomic_write, explained, place, same, sha256_of
from fdda_deploy.pipeline.folder_lock import locked
from fdda_deploy.pipeline.kept_results import mark_used, prune

__all__ = ["Json", "StageResult", "Workspace", "atomic_write", "code_digest", "stage_key"]

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
CODE_SUFFIXES = (".py", ".html", ".j2", ".css", ".js")


@dataclass(frozen=True)
class StageResult:
    """What one stage left.

    Attributes:
        folder: The finished stage's files; read them, do not change them.
        record: The JSON object that the action returned.
        cached: The stage was finished before and its files are intact.
        seconds: Wall time of this call, so near zero when cached.
        work_seconds: Wall time of the action when it was done (of its last attempt, if resumed).
        key: 64 hex digits: the digest of name, inputs and code.
        repaired: What was wrong with the cached files that made this run do them again, or None.
    """

    folder: Path
    record: dict[str, Any]
    cached: bool
    seconds: float
    work_seconds: float
    key: str
    repaired: str | None = None


@functools.cache
def code_digest() -> str:
    """Returns the sha256 over the tool's version and every source and template of the package."""
    sources = digest_of_sources(Path(fdda_deploy.__file__).parent)
    return hashlib.sha256(f"{fdda_deploy.__version__} {sources}".encode()).hexdigest()


def digest_of_sources(package: Path) -> str:
    """Returns one sha256 over names and contents; linked folders count as the folders they are."""
    sources = {
        Path(folder, name).relative_to(package).as_posix(): Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)  # a checkout links four of them
        for name in names
        if name.endswith(CODE_SUFFIXES)
    }
    lines = [f"{name} {sha256_of(sources[name])}" for name in sorted(sources)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stage_key(name: str, inputs: Mapping[str, Json]) -> str:
    """Returns the 64 hex digits that address a stage's result."""
    parts = {"name": name, "inputs": inputs, "code": code_digest()}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Workspace:
    """The result folder of one build, locked while the ``with`` block runs.

    Args:
        root: The result folder; made if absent. Foreign files in it are left alone.
        no_cache: Do every stage again from nothing.
        say: Called with one line when a damaged stage is done again.

    Raises:
        WorkspaceError: Another build holds the folder, or it cannot be written.
    """

    def __init__(
        self,
        root: Path,
        *,
        no_cache: bool = False,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.root = root
        self._no_cache = no_cache
        self._say = say
        self._stages = root / ".stages"
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                stack.enter_context(locked(self.root))
                shutil.rmtree(self._stages / ".temp", ignore_errors=True)
                (self._stages / ".temp").mkdir(parents=True, exist_ok=True)
                _sweep(self.root.glob(f".*{TEMP_SUFFIX}"))
                self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def run_stage(
        self,
        name: str,
        inputs: Mapping[str, Json],
        action: Callable[[Path], Mapping[str, Json]],
    ) -> StageResult:
        """Returns the stage's result: the finished one if it is intact, else ``action``'s.

        Args:
            name: The stage, a plain word; a folder has this name.
            inputs: Everything that decides the result: settings, digests of files and of stages.
            action: Writes its files into the folder it is given and returns a record. After a kill
                the same folder, with what was in it, is given again; files that are replaced
                atomically are whole in it.

        Raises:
            WorkspaceError: The disk is full or the folder cannot be written. What the action
                raises otherwise passes through, and its unfinished folder stays.
        """
        started = time.monotonic()
        key = stage_key(name, inputs)
        home = self._stages / name
        final = home / key[:12]
        partial = final.with_suffix(".partial")
        with explained(self.root):
            mark_used(home, final.name, self._stages / ".temp")
            found, damage = (None, None) if self._no_cache else _intact(final, key)
            if found is not None:
                seconds = time.monotonic() - started
                return StageResult(final, found["record"], True, seconds, found["seconds"], key)
            if damage is not None:
                self._say(f"{name}: {damage}; doing this stage again.")
            shutil.rmtree(final, ignore_errors=True)
            if self._no_cache:
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True, exist_ok=True)
            _sweep(partial.rglob(f".*{TEMP_SUFFIX}"))
        with explained(self.root, only_storage=True):
            record = action(partial)
        seconds = time.monotonic() - started
        with explained(self.root):
            head = {"stage": name, "key": key, "inputs": inputs, "record": record}
            record = _finish(partial, final, {**head, "seconds": seconds})
            prune(home)
        return StageResult(final, record, False, seconds, seconds, key, damage)

    def publish(self, files: Mapping[str, Path]) -> None:
        """Puts files where the user finds them, each atomically; identical ones are left alone.

        Args:
            files: Source by target, relative to the folder, for instance ``synthetic/images.npz``.

        Raises:
            WorkspaceError: A target outside the folder or on a folder's name, or a write fails.
        """
        for target, source in files.items():
            path = self._target(target)
            with explained(self.root):
                path.parent.mkdir(parents=True, exist_ok=True)
                place(source, path, self._stages / ".temp")

    def holds(self, files: Mapping[str, Path]) -> bool:
        """Returns whether every target of ``files`` (as in `publish`) has its source's bytes."""
        with explained(self.root):
            return all(same(source, self._target(target)) for target, source in files.items())

    def withdraw(self, targets: Iterable[str]) -> None:
        """Takes away published files of an earlier build, and folders that this empties.

        Raises:
            WorkspaceError: A target outside the folder or on a folder's name, or it cannot be done.
        """
        for target in targets:
            path = self._target(target)
            with explained(self.root):
                path.unlink(missing_ok=True)
                if path.parent != self.root:
                    with contextlib.suppress(OSError):  # not there, or foreign files in it
                        path.parent.rmdir()

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        path = self.root / name
        inside = path.parent.resolve().is_relative_to(self.root.resolve())
        if not parts or ".." in parts or not inside or parts[0] in {".stages", ".lock"}:
            raise WorkspaceError(f"{name}: a result file must stay inside {self.root}.")
        if path.is_dir() and not path.is_symlink():
            raise WorkspaceError(f"{path}: a folder stands where a result goes. Move it away.")
        return path


def _intact(folder: Path, key: str) -> tuple[dict[str, Any] | None, str | None]:
    """Returns a finished stage's stage.json, or None and what is wrong with it, if anything."""
    if not folder.exists():
        return None, None
    try:
        found = json.loads((folder / "stage.json").read_bytes())
        if found.pop("sha256") != _seal(found):
            return None, f"{folder / 'stage.json'} was changed"
        files, same = dict(found["files"]), found["key"] == key
        whole = isinstance(found["record"], dict) and isinstance(found["seconds"], float)
        for name, entry in files.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
                return None, f"{path} was changed"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, f"{folder} is damaged"
    return (found, None) if same and whole else (None, f"{folder} is damaged")


def _seal(found: Mapping[str, Any]) -> str:
    """Returns the digest of all that a stage.json says beside it."""
    text = json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _finish(partial: Path, final: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """Seals a stage: digests, everything on the disk, then the final name; returns the record."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    entries = {
        path.relative_to(partial).as_posix(): {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
        for path in files
        if path != partial / "stage.json"  # of an attempt that was killed between the next lines
    }
    found = json.loads(json.dumps({**head, "files": entries}, allow_nan=False))
    text = json.dumps({**found, "sha256": _seal(found)}, indent=1, sort_keys=True)
    atomic_write(partial / "stage.json", text)
    for path in (*files, *(path for path in partial.rglob("*") if path.is_dir()), partial):
        sync(path)
    partial.replace(final)
    sync(final.parent)
    record: dict[str, Any] = found["record"]
    return record


def _sweep(paths: Iterator[Path]) -> None:
    """Removes what a killed process left of its atomic writes."""
    for path in list(paths):
        path.unlink(missing_ok=True)
