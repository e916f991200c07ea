"""The trash of a watched folder: the only module that moves or removes files of a user.

A file leaves its folder by a rename into ``<watched>/.stepwatch/trash/<generation>/``, on the same file system and never over another file; there it
is held against what was rendered, and goes back when it differs. Beside the files lies ``manifest.json``, written before the first of them moves, so
that every instant of a clearing can be told from what is on the disk: whoever does the same again after a crash finishes it, and `restore` needs no
database. A manifest is *finished* once its clearing is recorded in the receipts; before that nothing in it is ever removed.

    clear      frames that a published animation covers -> trash
    (the caller commits to the receipts)
    finish     sidecar -> trash, the empty folder goes; `delete` empties the trash folder at once
    purge      empties trash folders whose grace is over
    restore    trash -> where the files were

Folders are opened one by one from the watched folder down, without following links, and files are named relative to those descriptors, so that
nothing that is swapped meanwhile leads elsewhere. Files are never named by pattern, and folders go by ``rmdir`` only.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import overload

from stepwatch.core.lifecycle import clearable
from stepwatch.core.manifest import MANIFEST, UNFINISHED_MANIFEST, DamagedManifestError, Manifest, Trashed, is_plain, manifest_text, parse_manifest
from stepwatch.core.model import Covered, Frame, Outcome, Published, Receipt, Render
from stepwatch.core.naming import is_frame_name, printable
from stepwatch.core.plan import plural
from stepwatch.core.policy import CleanupPolicy
from stepwatch.core.sidecar import SIZE_LIMIT, parse_sidecar
from stepwatch.errors import EnvironmentFault, RunError
from stepwatch.system import OWN_FOLDER

TRASH = (OWN_FOLDER, "trash")
SIDECAR = "run.json"
_MANIFEST_LIMIT = 64 * 1024 * 1024
_PLACES = 100
"""Trash folders of one generation, before something must be wrong."""

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# O_NONBLOCK: what looked like a file could be a pipe by now.
_FILE = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)

_CAPABLE = {os.open, os.stat, os.unlink, os.rename, os.link, os.mkdir, os.rmdir} <= os.supports_dir_fd

_log = logging.getLogger(__name__)
_told_already: set[str] = set()
"""Complaints about places of the trash that were logged: whoever lists it, and that is often, need not hear them again."""
_MOST_TOLD = 1000
_WORKFLOW_LIMIT = 16 << 20
"""Bytes of a workflow that is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What a clearing has done so far."""

    moved: int = 0
    """Files of this render that the trash now holds, checked there; once it was emptied, as many as the receipt knows."""
    changed: tuple[str, ...] = ()
    """Names of files that stay, each with its reason."""
    note: str = ""
    """One sentence for the receipt."""
    finished: bool = True
    """It has come to its end, well or not; False when it was told to stop and is to be called again."""
    place: str | None = None
    """Name of the trash folder to `finish`; None when nothing was moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What was removed from one trash folder for good, or would be."""

    manifest: Manifest
    removed: int
    size: int
    """Bytes."""
    kept: tuple[str, ...] = ()
    """Names of what stays, each with its reason; its trash folder stays with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a recorded clearing ended."""

    folder_removed: bool = False
    purged: Purged | None = None
    note: str = ""
    """Why the trash is held for now, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came back from the trash."""

    source: Path
    frames: tuple[Frame, ...]
    """As they are now: moving a file changes its ctime."""
    others: tuple[str, ...] = ()
    """Names of what is no frame: sidecar, workflow, animation."""
    kept: tuple[str, ...] = ()
    """Names of what stays in the trash, each with its reason."""


class _Refused(Exception):
    """Clearing would break a promise; the sentence says which."""


# ---------------------------------------------------------------- clearing


def outputs_there(render: Render) -> bool:
    """Whether every animation of a render is where it was published, and unchanged."""
    return _all_there(render.outputs)


def clear(
    render: Render,
    receipt: Receipt,
    run_folder: Path,
    watched: Path,
    *,
    cleanup: CleanupPolicy,
    now: float,
    stop: threading.Event,
    reason: str = "covered by an animation",
) -> Cleared:
    """Move the frames that a published render covers into the trash; doing it again after a crash completes it and counts right.

    ``run_folder`` and ``watched`` are real paths, ``now`` is the time by the clock of their file system. Raises EnvironmentFault when the machine
    is at fault; whatever was moved by then is in the trash and in its manifest.
    """
    due = tuple(_recorded(covered) for covered in clearable(render, cleanup))
    delete = cleanup.intermediates == "delete"
    wanted = Manifest(
        place="",
        kind="frames",
        run_id=receipt.run_id,
        name=receipt.name,
        watched=str(watched),
        source=str(run_folder),
        group=receipt.key.group,
        generation=render.generation,
        intermediates=cleanup.intermediates,
        grace=0.0 if delete else float(cleanup.grace),
        trashed_at=now,
        reason=reason,
        finished=False,
        outputs=render.outputs,
        files=due,
    )
    with _faults(f"clear {printable(str(run_folder))}"):
        try:
            _refuse_unsafe(render, cleanup)
            if not (render.cleared or os.path.lexists(run_folder) or begun(watched, render.generation, run_folder)):
                # Perhaps only a lost mount: nothing is concluded from that, and nothing is written there.
                raise FileNotFoundError(errno.ENOENT, "its folder is gone")
            with _open_trash(watched, make=True) as trash:
                source = trash.folder(_parts(wanted))
                folder, manifest = _claim(trash, wanted)
                moved, changed, problem, stopped = _take_all(source, folder, due, stop)
                _sync(folder, source)
                if not moved:
                    _drop(trash, folder, manifest.place)
        except (_Refused, PermissionError) as refused:
            return Cleared(note=f"its frames stay: {_reason(refused)}")
    if not (moved or changed or problem):
        # Nothing of it is anywhere: what was cleared before has been removed since, and still counts.
        moved = render.cleared
        return Cleared(moved=moved, note=f"{plural(moved, 'file')} cleared before" if moved else "its frames are gone")
    sentences = [
        f"{plural(moved, 'file')} {'cleared' if delete else 'moved to the trash'}",
        f"{plural(len(changed), 'file')} left alone ({', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''})" if changed else "",
        f"clearing stopped: {problem}" if problem else "",
    ]
    return Cleared(
        moved=moved, changed=changed, note="; ".join(filter(None, sentences)), finished=not stopped, place=manifest.place if moved else None
    )


def _refuse_unsafe(render: Render, cleanup: CleanupPolicy) -> None:
    """Ask once more what the core has decided already: here it is the last word."""
    names = [covered.frame.name for covered in render.frames]
    reasons = (
        (cleanup.intermediates == "keep", "the policy keeps them"),
        (not render.whole, "steps are missing, or a frame is damaged"),
        (render.guessed, "only a guess says that they are frames"),
        (not all(map(is_plain, names)), "a frame lies in a folder of its own"),
        (len(set(names)) < len(names), "two of them have the same name"),
        (not outputs_there(render), "its animation is no longer where it was published, or has changed"),
    )
    for applies, reason in reasons:
        if applies:
            raise _Refused(reason)


def _take_all(source: int | None, folder: int, due: Iterable[Trashed], stop: threading.Event) -> tuple[int, tuple[str, ...], str, bool]:
    """Move what is due, one by one: how many the trash holds now, what stays and why, what ended it early, and whether that was *stop*."""
    moved = 0
    changed: list[str] = []
    for file in due:
        if stop.is_set():
            return moved, tuple(changed), "it was told to stop", True
        try:
            stays = _take(source, folder, file)
        except _Refused as refused:
            return moved, tuple(changed), str(refused), False
        except PermissionError:
            return moved, tuple(changed), f"permission to move {printable(file.name)} is denied", False
        moved += stays == ""
        if stays:
            changed.append(f"{printable(file.name)}: {stays}")
    return moved, tuple(changed), "", False


def _take(source: int | None, folder: int, file: Trashed) -> str | None:
    """Bring one file into the trash: "" when it is there, else why it stays, None when it is nowhere; _Refused when it had to go back."""
    here = _facts(source, file.name) if source is not None else None
    there = _facts(folder, file.name)
    if here is None and there is None:
        return None
    if source is not None and here is not None:
        # A move by link and unlink that was cut short between the two.
        halfway = there is not None and os.path.samestat(here, there)
        if there is not None and not halfway:
            return "the trash has another file of that name"
        differs = _differs(here, file, device=os.fstat(folder).st_dev, links=2 if halfway else 1, ctime=not halfway)
        if differs:
            return differs
        try:
            _move(source, folder, file.name)
        except FileNotFoundError:
            return None
    differs = _wrong(folder, file)
    if not differs:
        return ""
    # Somebody wrote between the look and the move.
    if source is None:
        raise _Refused(f"{printable(file.name)} stays in the trash, as its folder is gone: {differs}")
    try:
        _move(folder, source, file.name)
    except FileExistsError:
        raise _Refused(f"{printable(file.name)} stays in the trash, as its name is taken: {differs}") from None
    raise _Refused(f"{printable(file.name)} went back: {differs}")


# ---------------------------------------------------------------- after the receipt


def finish(watched: Path, place: str) -> Finished:
    """Complete a clearing that the receipts have recorded: the sidecar follows its frames, the empty folder goes, and ``delete`` deletes.

    While its animations are not there it does nothing but say so, and the trash is held. Doing it again is harmless.
    """
    with _faults(f"finish clearing into {_shown(watched, place)}"), _told(), _open_trash(watched) as trash:
        folder, manifest = trash.place(place)
        if folder is None or manifest is None:
            return Finished()
        if not any(_facts(folder, file.name) for file in manifest.files):
            _drop(trash, folder, place)
            if _facts(folder, MANIFEST):
                # Somebody else's file keeps the place; there is nothing left in it to be gone on with.
                _write(folder, replace(manifest, finished=True))
            return Finished()
        if not _all_there(manifest.outputs):
            return Finished(note="its animation is no longer where it was published, so the trash keeps its frames until they are restored")
        manifest, removed = _tidy(trash, folder, manifest)
        purged = _empty(trash, folder, manifest, dry_run=False) if manifest.intermediates == "delete" else None
        if purged is None or purged.kept:
            _write(folder, replace(manifest, finished=True))
        return Finished(folder_removed=removed, purged=purged)


def _tidy(trash: _Trash, folder: int, manifest: Manifest) -> tuple[Manifest, bool]:
    """Move the sidecar once no frame is left beside it, and remove the folder if it is empty and was the run's own."""
    try:
        parts = _parts(manifest)
        source = trash.folder(parts)
        if source is None or manifest.group or not parts or any(map(is_frame_name, os.listdir(source))):
            return manifest, False
        known = {file.name for file in manifest.files}
        added = tuple(file for file in _sidecar_files(source, manifest.run_id) if file.name not in known)
        if added:
            manifest = replace(manifest, files=manifest.files + added)
            _write(folder, manifest)
        for file in manifest.files:
            if file.step == 0:
                _take(source, folder, file)
        _sync(folder, source)
        above = trash.folder(parts[:-1])
        if above is None:
            return manifest, False
        # By name, but only ever a folder, and only an empty one.
        os.rmdir(parts[-1], dir_fd=above)
        _sync(above)
    except (_Refused, OSError) as error:
        stays = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOENT, errno.EACCES, errno.EPERM)
        if isinstance(error, OSError) and error.errno not in stays:
            raise
        _log.info("folder %s stays: %s", printable(manifest.source), _reason(error))
        return manifest, False
    return manifest, True


def _sidecar_files(source: int, run_id: str) -> tuple[Trashed, ...]:
    """The files of the sidecar of this very run, itself last: while it is there, the folder can be told for what it is."""
    with _opened_file(source, SIDECAR) as file:
        data = file.read(SIZE_LIMIT + 1) if file else b""
    sidecar, _ = parse_sidecar(data)
    recorded = _recorded_now(source, SIDECAR)
    if not sidecar or sidecar.run_id != run_id or sidecar.state is Outcome.RUNNING:
        return ()
    if not recorded or recorded.digest != hashlib.sha256(data).hexdigest():
        return ()
    workflow = sidecar.workflow_file
    # A sidecar may name any file beside it; only what is a workflow goes where the run goes.
    named = workflow and workflow.endswith(".json") and is_plain(workflow) and workflow != SIDECAR
    beside = _recorded_now(source, workflow) if workflow and named and _is_workflow(source, workflow) else None
    return (beside, recorded) if beside else (recorded,)


def _is_workflow(source: int, name: str) -> bool:
    with _opened_file(source, name) as file:
        data = file.read(_WORKFLOW_LIMIT + 1) if file else b""
    try:
        content = json.loads(data) if len(data) <= _WORKFLOW_LIMIT else None
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in ("prompt", "workflow"))


def begun(watched: Path, generation: str, source: Path) -> str | None:
    """Name of the trash folder that a clearing of this run's generation has used, rather one that is not finished."""
    there = [one for one in _listing(watched, generation) if (one.kind, one.source, one.generation) == ("frames", str(source), generation)]
    return min(there, key=lambda one: one.finished).place if there else None


def unfinished(watched: Path, generation: str = "") -> tuple[Manifest, ...]:
    """Clearings, of this generation or of all, that were begun and not finished: `clear` goes on with one, or the receipts know it already,
    then `finish`.
    """
    return tuple(one for one in _listing(watched, generation) if not one.finished)


def listing(watched: Path) -> tuple[Manifest, ...]:
    """What the trash of a watched folder holds, oldest first; a damaged manifest is left out and logged."""
    return tuple(sorted(_listing(watched, ""), key=lambda one: (one.trashed_at, one.place)))


def _listing(watched: Path, prefix: str) -> list[Manifest]:
    with _faults(f"list the trash of {printable(str(watched))}"), _told(), _open_trash(watched, lock=False) as trash:
        return [manifest for _, _, manifest in trash.places(prefix) if manifest]


# ---------------------------------------------------------------- animations


def retire(output: Published, watched: Path, *, reason: str, grace: float, now: float) -> str | None:
    """Move an incomplete animation of ours into the trash; None when it is gone, changed, linked elsewhere or on another device.

    Returns the name of its trash folder; doing it again after a crash does so as well.
    """
    parent, name = os.path.split(output.path)
    file = Trashed(name=name, step=0, size=output.size, mtime_ns=output.mtime_ns, ctime_ns=-1, inode=output.inode, digest=output.sha256)
    generation = f"output-{hashlib.sha256(os.fsencode(output.path) + output.sha256.encode()).hexdigest()[:32]}"
    wanted = Manifest(
        place="",
        kind="output",
        run_id="",
        name=name,
        watched=str(watched),
        source=parent,
        group="",
        generation=generation,
        intermediates="trash",
        grace=grace,
        trashed_at=now,
        reason=reason,
        finished=True,
        outputs=(),
        files=(file,),
    )
    with _faults(f"move {printable(output.path)} into the trash"):
        try:
            with _open_trash(watched, make=True) as trash:
                # Unlike a run's, an output's folder may be reached through links: the policy named it.
                source = trash.opened(os.open(parent, _FOLDER)) if os.path.isdir(parent) else None
                folder, manifest = _claim(trash, wanted)
                moved, changed, problem, _ = _take_all(source, folder, (file,), threading.Event())
                _sync(folder, source)
                if moved:
                    return manifest.place
                _drop(trash, folder, manifest.place)
                reason = problem or ", ".join(changed) or "it is gone"
        except (_Refused, PermissionError) as refused:
            reason = _reason(refused)
    _log.info("animation %s stays: %s", printable(output.path), reason)
    return None


# ---------------------------------------------------------------- the end of the grace, and the way back


def purge(
    watched: Path,
    *,
    now: float,
    grace_for: Callable[[Manifest], float | None],
    dry_run: bool = False,
    stop: threading.Event | None = None,
) -> tuple[Purged, ...]:
    """Remove for good what has been in the trash for longer than both its manifest and ``grace_for`` ask (None: keep it).

    Each file is checked once more; what has changed or is not in the manifest stays, and is reported. ``now`` is as for `clear`. Once *stop* is
    set, what is not removed yet stays for the next time.
    """
    done = []
    with _faults(f"empty the trash of {printable(str(watched))}"), _told(), _open_trash(watched) as trash:
        for name, folder, manifest in trash.places(""):
            if stop is not None and stop.is_set():
                break
            if manifest is None:
                # A crash between making a place and writing its manifest, or between removing one and the other.
                if not dry_run:
                    _drop(trash, folder, name)
                continue
            grace = grace_for(manifest) if manifest.finished else None
            if grace is not None and now >= manifest.trashed_at + max(grace, manifest.grace):
                done.append(_empty(trash, folder, manifest, dry_run=dry_run, stop=stop))
    return tuple(done)


def _empty(trash: _Trash, folder: int, manifest: Manifest, *, dry_run: bool, stop: threading.Event | None = None) -> Purged:
    removed, size = 0, 0
    kept: list[str] = []
    for file in manifest.files:
        if stop is not None and stop.is_set():
            return Purged(manifest=manifest, removed=removed, size=size, kept=tuple(kept))
        if _facts(folder, file.name) is None:
            continue
        if differs := _wrong(folder, file):
            kept.append(f"{printable(file.name)}: {differs}")
            continue
        if not dry_run:
            os.unlink(file.name, dir_fd=folder)
        removed, size = removed + 1, size + file.size
    kept += [f"{printable(name)}: it is not in the manifest" for name in _strangers(folder, manifest)]
    if not dry_run and not kept:
        _drop(trash, folder, manifest.place)
    return Purged(manifest=manifest, removed=removed, size=size, kept=tuple(kept))


def restore(watched: Path, which: Manifest | str) -> Restored:
    """Move the files of a trash folder (its manifest or name) back to where they were, over nothing; it needs nothing but the manifest.

    A name that is taken stays in the trash and is reported. RunError when the manifest is damaged or the place cannot be reached safely.
    """
    name = which if isinstance(which, str) else which.place
    frames, others, kept = [], [], []
    with _faults(f"restore {_shown(watched, name)}"), _told(), _open_trash(watched) as trash:
        folder, manifest = trash.place(name)
        if folder is None or manifest is None:
            raise _Refused(f"{_shown(watched, name)} is not there, or has no manifest")
        parts = _parts(manifest)
        source = trash.folder(parts, make=0o777)
        # The sidecar last: with it the run is there at once and whole.
        for file in sorted(manifest.files, key=lambda one: one.step == 0):
            facts = _facts(folder, file.name)
            if facts is None:
                continue
            if not stat.S_ISREG(facts.st_mode):
                kept.append(f"{printable(file.name)}: it is not a regular file")
                continue
            try:
                _move(folder, source, file.name)
            except FileExistsError:
                kept.append(f"{printable(file.name)}: its name is taken by another file")
                continue
            if file.step:
                frames.append(_frame(file, os.stat(file.name, dir_fd=source, follow_symlinks=False)))
            else:
                others.append(file.name)
        _sync(source, folder)
        kept += [f"{printable(stranger)}: it is not in the manifest" for stranger in _strangers(folder, manifest)]
        if not kept:
            _drop(trash, folder, name)
        elif not manifest.finished:
            # It was brought back on purpose, so it is not to be gone on with.
            _write(folder, replace(manifest, finished=True))
    return Restored(source=watched.joinpath(*parts), frames=tuple(frames), others=tuple(others), kept=tuple(kept))


# ---------------------------------------------------------------- trash folders and their manifests


class _Trash:
    """The trash of a watched folder while somebody works in it; descriptors are closed with its stack."""

    def __init__(self, stack: ExitStack, watched: Path) -> None:
        if not _CAPABLE:
            raise _Refused("this system cannot name files relative to an open folder, so nothing is moved")
        self.stack = stack
        self.watched = watched
        self.root = self.opened(os.open(watched, _FOLDER | _NO_LINK))
        self.trash: int | None = None

    def opened(self, descriptor: int, stack: ExitStack | None = None) -> int:
        (stack or self.stack).callback(os.close, descriptor)
        return descriptor

    @overload
    def folder(self, parts: Iterable[str], *, make: int) -> int: ...
    @overload
    def folder(self, parts: Iterable[str], *, stack: ExitStack | None = None) -> int | None: ...
    def folder(self, parts: Iterable[str], *, make: int | None = None, stack: ExitStack | None = None) -> int | None:
        """Open a folder below the watched one, each on the way in turn, never through a link or onto another device; None if it is not there.

        ``make`` is the mode of what has to be made.
        """
        here = self.root
        for part in parts:
            if make is not None:
                with suppress(FileExistsError):
                    os.mkdir(part, make, dir_fd=here)
                    _sync(here)
            try:
                below = self.opened(os.open(part, _FOLDER | _NO_LINK, dir_fd=here), stack)
            except FileNotFoundError:
                if make is None:
                    return None
                raise
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise _Refused(f"{printable(part)} is a link, or no folder") from error
                raise
            if os.fstat(below).st_dev != os.fstat(self.root).st_dev:
                raise _Refused(f"{printable(part)} is on another device than the watched folder")
            here = below
        return here

    def place(self, name: str, stack: ExitStack | None = None) -> tuple[int | None, Manifest | None]:
        """Open a trash folder and read its manifest; None for what is not there."""
        folder = self.folder((*TRASH, name), stack=stack) if is_plain(name) else None
        return folder, _read(folder, name) if folder is not None else None

    def places(self, prefix: str) -> Iterator[tuple[str, int, Manifest | None]]:
        """Yield the trash folders whose names begin so, each open until the next; what is damaged is logged and left out."""
        for name in sorted(os.listdir(self.trash)) if self.trash is not None else ():
            if name.startswith(prefix):
                with ExitStack() as stack:
                    try:
                        folder, manifest = self.place(name, stack)
                    except (_Refused, DamagedManifestError, PermissionError) as error:
                        told = f"{_shown(self.watched, name)} is left alone: {_reason(error)}"
                        if told not in _told_already and len(_told_already) < _MOST_TOLD:
                            _told_already.add(told)
                            _log.warning(told)
                        continue
                    if folder is not None:
                        yield name, folder, manifest


@contextmanager
def _open_trash(watched: Path, *, make: bool = False, lock: bool = True) -> Iterator[_Trash]:
    """Open a trash for one worker at a time, in this process and all others; another one waits."""
    with ExitStack() as stack:
        trash = _Trash(stack, watched)
        trash.trash = trash.folder(TRASH, make=0o700) if make else trash.folder(TRASH)
        if lock and trash.trash is not None:
            import fcntl  # not on Windows, where nobody comes this far

            try:
                # On the folder itself, and let go when its descriptor is closed, however the process ends.
                fcntl.flock(trash.trash, fcntl.LOCK_EX)
            except OSError as error:
                # NFS emulates it with locks that folders cannot have. Then the daemon's own lock has to do.
                if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        yield trash


def _claim(trash: _Trash, wanted: Manifest) -> tuple[int, Manifest]:
    """Open the trash folder of this clearing, or make one that is nobody's, and write into its manifest all that is going to move."""
    for number in range(1, _PLACES):
        name = wanted.generation if number == 1 else f"{wanted.generation}-{number}"
        if not is_plain(name):
            raise _Refused("its generation is no name for a folder")
        folder = trash.folder((*TRASH, name), make=0o700)
        try:
            found = _read(folder, name)
        except DamagedManifestError:
            continue
        if _strangers(folder, None) if found is None else not _same_clearing(found, wanted):
            continue
        names = {file.name for file in wanted.files}
        earlier = tuple(file for file in found.files if file.name not in names) if found else ()
        manifest = replace(wanted, place=name, files=earlier + wanted.files)
        _write(folder, manifest)
        return folder, manifest
    raise _Refused(f"the trash has {_PLACES} folders named {wanted.generation}")


def _same_clearing(found: Manifest, wanted: Manifest) -> bool:
    """Whether both speak of the same files of the same run, and not of later copies with equal names and content."""
    known = {file.name: file for file in found.files}
    facts = [(one.kind, one.run_id, one.source, one.group, one.generation) for one in (found, wanted)]
    return facts[0] == facts[1] and all(known.get(file.name, file) == file for file in wanted.files)


def _read(folder: int, place: str) -> Manifest | None:
    if _facts(folder, MANIFEST) is None:
        return None
    with _opened_file(folder, MANIFEST) as file:
        return parse_manifest(file.read(_MANIFEST_LIMIT) if file else b"", place)


def _write(folder: int, manifest: Manifest) -> None:
    """Write a manifest in one step, and bring it to the disk."""
    _unlink_own(folder, UNFINISHED_MANIFEST)
    opened = os.open(UNFINISHED_MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600, dir_fd=folder)
    with os.fdopen(opened, "wb") as file:
        file.write(manifest_text(manifest))
        file.flush()
        os.fsync(file.fileno())
    os.rename(UNFINISHED_MANIFEST, MANIFEST, src_dir_fd=folder, dst_dir_fd=folder)
    _sync(folder)


def _drop(trash: _Trash, folder: int, name: str) -> None:
    """Remove a trash folder in which nothing but its manifest is left."""
    if trash.trash is None or set(os.listdir(folder)) - {MANIFEST, UNFINISHED_MANIFEST}:
        return
    _sync(folder)
    _unlink_own(folder, UNFINISHED_MANIFEST)
    _unlink_own(folder, MANIFEST)
    os.rmdir(name, dir_fd=trash.trash)
    _sync(trash.trash)


def _unlink_own(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _strangers(folder: int, manifest: Manifest | None) -> list[str]:
    known = {file.name for file in manifest.files} if manifest else set()
    return sorted(set(os.listdir(folder)) - known - {MANIFEST, UNFINISHED_MANIFEST})


def _parts(manifest: Manifest) -> tuple[str, ...]:
    """The way from the watched folder down to where the files came from."""
    try:
        parts = Path(manifest.source).relative_to(manifest.watched).parts
    except ValueError:
        raise _Refused(f"{printable(manifest.source)} is not inside the watched folder") from None
    if ".." in parts or TRASH[0] in parts:
        raise _Refused(f"{printable(manifest.source)} is no place for frames")
    return parts


def _sync(*folders: int | None) -> None:
    """Bring renames to the disk; a file system that cannot say so is a fault here: nothing may be cleared on it."""
    for folder in folders:
        if folder is not None:
            os.fsync(folder)


# ---------------------------------------------------------------- files


def _facts(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _differs(facts: os.stat_result, file: Trashed, *, device: int, links: int = 1, ctime: bool = False) -> str:
    """Say why a file is not the recorded one, or must not be touched; empty when it is."""
    if not stat.S_ISREG(facts.st_mode):
        return "it is not a regular file"
    if facts.st_dev != device:
        return "it is on another device"
    if facts.st_nlink != links:
        return "it has a hard link elsewhere"
    same = (facts.st_ino, facts.st_size, facts.st_mtime_ns) == (file.inode, file.size, file.mtime_ns)
    if not same or (ctime and file.ctime_ns not in (-1, facts.st_ctime_ns)):
        return "it has changed since it was rendered"
    return ""


def _wrong(folder: int, file: Trashed) -> str:
    """Say why a file in the trash is not the recorded one, content included; empty when it is. A rename changes its ctime, so that is left out."""
    facts = _facts(folder, file.name)
    if facts is None:
        return "it is gone"
    if differs := _differs(facts, file, device=os.fstat(folder).st_dev):
        return differs
    try:
        now = _recorded_now(folder, file.name)
    except PermissionError:
        return "permission to read it is denied"
    return "" if now and now.digest == file.digest and now.inode == file.inode else "its content is not what was rendered"


def _recorded(covered: Covered) -> Trashed:
    frame = covered.frame
    return Trashed(
        name=frame.name, step=frame.step, size=frame.size, mtime_ns=frame.mtime_ns, ctime_ns=frame.ctime_ns, inode=frame.inode, digest=covered.digest
    )


@contextmanager
def _opened_file(folder: int, name: str) -> Iterator[BufferedReader | None]:
    """Open a regular file without following a link or waiting for a pipe; None for what is gone or no file."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        descriptor = -1
    if descriptor < 0:
        yield None
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                yield file
        else:
            yield None
    finally:
        os.close(descriptor)


def _recorded_now(folder: int, name: str) -> Trashed | None:
    """Record a file as it is now; None when it is gone, no regular file, linked elsewhere, or being written."""
    with _opened_file(folder, name) as file:
        if file is None:
            return None
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts = os.fstat(file.fileno())
    same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if not same or facts.st_nlink != 1:
        return None
    return Trashed(name=name, step=0, size=facts.st_size, mtime_ns=facts.st_mtime_ns, ctime_ns=facts.st_ctime_ns, inode=facts.st_ino, digest=digest)


def _frame(file: Trashed, facts: os.stat_result) -> Frame:
    return Frame(
        step=file.step,
        name=file.name,
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        ctime_ns=facts.st_ctime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
        links=facts.st_nlink,
    )


def _all_there(outputs: Iterable[Published]) -> bool:
    found = []
    for output in outputs:
        try:
            facts = os.lstat(output.path)
        except OSError:
            return False
        same = (facts.st_size, facts.st_mtime_ns, facts.st_ino) == (output.size, output.mtime_ns, output.inode)
        found.append(stat.S_ISREG(facts.st_mode) and same)
    return bool(found) and all(found)


def _move(source: int, target: int, name: str) -> None:
    """Move a file from one open folder to another of the same file system; FileExistsError when the name is taken there."""
    try:
        try:
            _rename_without_replacing(source, target, name)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # NFS and others know no such rename; two names for an instant, never none.
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            os.unlink(name, dir_fd=source)
    except FileExistsError:
        here, there = _facts(source, name), _facts(target, name)
        if here is None or there is None or not os.path.samestat(here, there):
            raise
        # Cut short between link and unlink, or an answer that was lost on the way from a server.
        os.unlink(name, dir_fd=source)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _Refused(f"{printable(name)} is on another mount than the trash") from error
        raise


def _rename_without_replacing(source: int, target: int, name: str) -> None:
    """Rename in one step; OSError with ENOSYS where the system knows no such step."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform.startswith("linux") else None
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    no_replace = ctypes.c_uint(1)
    if function(source, os.fsencode(name), target, os.fsencode(name), no_replace) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


# ---------------------------------------------------------------- faults


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Turn what the system refuses into a fault of the machine."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"cannot {what}: {_reason(error)}") from error


@contextmanager
def _told() -> Iterator[None]:
    """Tell a user, who asked for it, why it is not done."""
    try:
        yield
    except (_Refused, DamagedManifestError) as refused:
        raise RunError(str(refused), hint="nothing was removed; files that the trash holds can be moved back by hand") from refused


def _shown(watched: Path, place: str) -> str:
    return printable(str(watched.joinpath(*TRASH, place)))


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    words = {errno.ENOSPC: "no space is left on the disk", errno.EROFS: "the file system is read-only", errno.EIO: "the disk reports an error"}
    return words.get(error.errno or 0) or printable(error.strerror or str(error)).lower()
