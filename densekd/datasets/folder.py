"""A folder of generated data that is either absent or complete.

It is written beside its place, under a name that says which process is at it, and renamed when all
is there. `digits.json` in it says what it was made from, and what each subfolder must hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from densekd.errors import DataError

MARKER = 'digits.json'
MADE_BY = 'densekd.datasets.digits'
FORMAT = 2  # raise it when the same spec no longer gives the same files

# One at a time within a process, so a partial folder with our own process id is a dead one's whose
# id came back (in a container, ids repeat from start to start).
_LOCK = threading.Lock()


class FolderWriter:
    """Writes files into subfolders, and remembers what it wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._digests: dict[str, dict[str, tuple[int, str]]] = {}

    def make_folder(self, folder: str) -> None:
        """Makes a subfolder, which may stay empty."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._digests.setdefault(folder, {})

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Writes one file."""
        if folder not in self._digests:
            self.make_folder(folder)
        (self.root / folder / name).write_bytes(content)
        self._digests[folder][name] = (len(content), hashlib.sha256(content).hexdigest())

    def summary(self) -> dict[str, dict[str, Any]]:
        """Returns the number of files, their bytes and one checksum, for each subfolder."""
        return {
            folder: {
                'files': len(files),
                'bytes': sum(size for size, _ in files.values()),
                'sha256': checksum({name: digest for name, (_, digest) in files.items()}),
            }
            for folder, files in sorted(self._digests.items())
        }


def checksum(digests: dict[str, str]) -> str:
    """Returns one SHA-256 over names and the SHA-256 of each, in the order of names."""
    lines = ''.join(f'{digest}  {name}\n' for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_folder(root: Path, spec: dict[str, Any]) -> bool:
    """Returns whether a folder holds the data of a spec; False means that it may be written.

    The annotations are read whole, of all other files only number and sizes, which takes
    milliseconds.

    Raises:
        DataError: The folder holds something else.
    """
    if not root.exists():
        if root.is_symlink():
            raise DataError(f'{root}: is a link to nothing. Remove it, or give another folder.')
        return False
    if not root.is_dir():
        raise DataError(f'{root}: is a file, and the digits need a folder. Give another path.')
    entries = sorted(entry.name for entry in root.iterdir())
    if not entries:
        return False
    if MARKER not in entries:
        shown = ', '.join(entries[:3]) + (' and more' if len(entries) > 3 else '')
        raise DataError(
            f'{root}: was not made by {MADE_BY}, it holds {shown}. Give a new or an empty folder.'
        )
    marker = read_marker(root)
    theirs = marker['spec']
    if theirs != spec:
        differences = ', '.join(
            f'{key} {theirs.get(key)!r} instead of {spec.get(key)!r}'
            for key in [*spec, *(key for key in theirs if key not in spec)]
            if theirs.get(key) != spec.get(key)
        )
        raise DataError(
            f'{root}: holds digits of another spec ({differences}). '
            'Give another folder, ask for that spec, or delete this folder to have it made again.'
        )
    for name, expected in marker['folders'].items():
        problem = compare_folder(root / name, expected, read=name == 'annotations')
        if problem:
            raise DataError(
                f'{root}: {name} {problem}, so it was changed after it was made. '
                'Delete the folder to have it made again.'
            )
    return True


def read_marker(root: Path) -> dict[str, Any]:
    """Returns what a folder says of itself.

    Raises:
        DataError: It is not a marker of ours, or of another format.
    """
    again = 'Delete the folder to have it made again, or give another one.'
    try:
        marker = json.loads((root / MARKER).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f'{root}: its {MARKER} can not be read. {again}') from error
    if not isinstance(marker, dict) or marker.get('made_by') != MADE_BY:
        raise DataError(f'{root}: its {MARKER} was not written by {MADE_BY}. Give another folder.')
    if marker.get('format') != FORMAT:
        raise DataError(
            f'{root}: holds digits of format {marker.get("format")!r}, this version of densekd '
            f'makes format {FORMAT}. {again}'
        )
    if not all(isinstance(marker.get(key), dict) for key in ('spec', 'folders')):
        raise DataError(f'{root}: its {MARKER} lacks the spec or the folders. {again}')
    return marker


def compare_folder(folder: Path, expected: dict[str, Any], read: bool) -> str | None:
    """Returns what is wrong with a subfolder as a piece of a sentence, or None."""
    try:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    except OSError:
        return 'can not be read'
    if len(sizes) != expected['files']:
        return f'has {len(sizes)} files instead of {expected["files"]}'
    if sum(sizes.values()) != expected['bytes']:
        return f'has {sum(sizes.values())} bytes instead of {expected["bytes"]}'
    if read:
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sizes}
        if checksum(digests) != expected['sha256']:
            return 'has another checksum'
    return None


def publish(
    root: Path,
    spec: dict[str, Any],
    write: Callable[[FolderWriter], dict[str, object]],
) -> None:
    """Has a folder written and puts it in its place, unless another process was faster.

    Args:
        root: Where it goes: missing or empty.
        spec: What it is made from.
        write: Writes everything, and returns what else the marker is to say.

    Raises:
        DataError: Something else came to be in its place, or the folder can't be put there.
    """
    place = root.resolve()
    with _LOCK:
        # Another thread may have been at it while this one waited.
        if check_folder(root, spec):
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            remove_dead(place)
            partial = partial_path(place, os.getpid())
            partial.mkdir()
        except OSError as error:
            raise DataError(
                f'{root}: nothing can be written beside it ({error.strerror}). Give another folder.'
            ) from error
        try:
            writer = FolderWriter(partial)
            extra = write(writer)
            write_marker(partial, spec, writer.summary(), extra)
            put_in_place(partial, place, root, spec)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_marker(
    partial: Path,
    spec: dict[str, Any],
    folders: dict[str, dict[str, Any]],
    extra: dict[str, object],
) -> None:
    """Writes the marker, and waits until what it is judged by is on the disk."""
    marker = {
        'made_by': MADE_BY,
        'format': FORMAT,
        'spec': spec,
        'checksum': checksum({name: folder['sha256'] for name, folder in folders.items()}),
        'folders': folders,
        **extra,
    }
    (partial / MARKER).write_text(json.dumps(marker, indent=1) + '\n', encoding='utf-8')
    # Ten thousand images are not waited for one by one, which takes minutes on a disk: one that a
    # power cut swallowed has another size, which `check_folder` notices.
    for path in [*(partial / 'annotations').glob('*'), partial / MARKER]:
        sync(path)
    for folder in folders:
        sync(partial / folder)
    sync(partial)


def put_in_place(partial: Path, place: Path, root: Path, spec: dict[str, Any]) -> None:
    """Renames the finished folder; if another process has put one there, that one stays."""
    try:
        os.rename(partial, place)
    except OSError as error:
        if check_folder(root, spec):
            shutil.rmtree(partial, ignore_errors=True)
            return
        raise DataError(
            f'{root}: the finished folder can not be put there ({error.strerror}). '
            'If it is a mount point, give a folder inside it.'
        ) from error
    sync(place.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a directory's list of names, is on the disk."""
    if os.name != 'posix' and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_path(place: Path, process: int) -> Path:
    """Returns where a process of this machine writes what is to become `place`."""
    # Process ids mean nothing on another machine that shares the disk.
    host = re.sub(r'[^\w.]', '_', socket.gethostname())
    return place.parent / f'.{place.name}.partial-{host}-{process}'


def remove_dead(place: Path) -> None:
    """Removes what processes that are gone have left half-written."""
    prefix = partial_path(place, 0).name[:-1]
    for path in place.parent.iterdir():
        process = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and process.isdigit() and not is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Returns whether another process with this id runs on this machine."""
    if process == os.getpid():
        return False
    if os.name != 'posix':
        return True  # no harmless way to ask: leave it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
