"""Where links of Windows lead: targets as Windows wrote them, turned into ones that this tree can follow.

A target on the volume itself becomes relative to the link, in the case in which the names are stored. The
letter of a drive is a matter of the running system, so a target with one counts as on this volume when its
path exists here, and is else shown as it is, with forward slashes. Source: [MS-FSCC] 2.1.2.4 and 2.1.2.5.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imageformat.errors import VolumeError
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mountfs.drivers._ntfs_records import IndexEntry

_MAX_PARTS = 256
_CACHED_NAMES = 100_000
_DRIVE = re.compile(rb"[A-Za-z]:(?=\\|$)")
_OTHER = (b"\\\\", b"UNC\\", b"Volume{")
"""Other machines, and volumes by their identifiers."""
_DEVICE_PREFIXES = (b"\\??\\", b"\\\\?\\", b"\\DosDevices\\")


class Directories(Protocol):
    """The directories of a volume, by number."""

    def parent(self, number: int) -> int:
        """Return the directory that holds a file."""
        ...

    def entries(self, number: int) -> Iterator[IndexEntry]:
        """Yield the names in a directory."""
        ...


class _Index(NamedTuple):
    """The names of one directory."""

    exact: dict[bytes, int]
    folded: dict[str, tuple[bytes, int]]


class Names:
    """Looks names up as Windows does; a folder of links asks for the same directories again and again."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._indexes: SharedCache[int, _Index] = SharedCache(
            _CACHED_NAMES, lambda index: len(index.exact) + 1
        )

    def parent(self, number: int) -> int:
        """Return the directory that holds a file."""
        return self._directories.parent(number)

    def find(self, number: int, name: bytes) -> tuple[bytes, int] | None:
        """Look up a name, best in the very same case; the name as stored, and the number of its file."""
        index = self._indexes.get_or_make(number, lambda: self._read(number))
        if name in index.exact:
            return name, index.exact[name]
        return index.folded.get(_upper(name))

    def _read(self, number: int) -> _Index:
        """Read a directory; what is none, or is damaged, has fewer names or none."""
        index = _Index({}, {})
        with contextlib.suppress(VolumeError, struct.error):
            for entry in self._directories.entries(number):
                index.exact[entry.name] = entry.number
                index.folded.setdefault(_upper(entry.name), (entry.name, entry.number))
        return index


def _upper(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass").upper()


class _Target(NamedTuple):
    parts: tuple[bytes, ...]
    is_rooted: bool
    is_certain: bool
    """It names a place of this volume; else it may be another's."""


def plain_target(target: bytes) -> bytes:
    """Return a target as it is, but for forward slashes and the prefix that says that it is final."""
    return _bare(target).replace(b"\\", b"/")


def _bare(target: bytes) -> bytes:
    for prefix in _DEVICE_PREFIXES:
        target = target.removeprefix(prefix)
    return target


def posix_target(names: Names, root: int, link: int, target: bytes) -> bytes:
    """Return the target of the link with number ``link`` as a path that starts at the link's folder.

    Raises:
        VolumeError: the folders above the link cannot be told.
    """
    parsed, verbatim = _parse(_bare(target)), plain_target(target)
    if parsed is None or len(parsed.parts) > _MAX_PARTS:
        return verbatim
    folder = names.parent(link)
    found = _resolve(names, root, root if parsed.is_rooted else folder, parsed.parts)
    if found is None and not (parsed.is_rooted and parsed.is_certain):
        return verbatim
    path = parsed.parts if found is None else found
    up = _depth(names, root, folder) if parsed.is_rooted else 0
    return b"/".join([b".."] * up + list(path)) or b"."


def _parse(plain: bytes) -> _Target | None:
    """Split a target; None when nothing in it can lie on this volume."""
    drive = _DRIVE.match(plain)
    rest = plain[drive.end() :] if drive else plain
    parts = [part for part in re.split(rb"[\\/]", rest) if part not in {b"", b"."}]
    if plain.startswith(_OTHER) or (drive and not parts):
        return None
    is_rooted = bool(drive) or rest.startswith((b"\\", b"/"))
    return _Target(tuple(_folded(parts) if is_rooted else parts), is_rooted, drive is None)


def _folded(parts: Sequence[bytes]) -> list[bytes]:
    """Take out steps upwards; above the root there is nothing."""
    found: list[bytes] = []
    for part in parts:
        if part != b"..":
            found.append(part)
        elif found:
            found.pop()
    return found


def _resolve(names: Names, root: int, start: int, parts: Sequence[bytes]) -> tuple[bytes, ...] | None:
    """Walk down from a directory; None when something is not there."""
    found: list[bytes] = []
    number = start
    for part in parts:
        if part == b"..":
            number = names.parent(number) if number != root else root
            found.append(part)
            continue
        entry = names.find(number, part)
        if entry is None:
            return None
        found.append(entry[0])
        number = entry[1]
    return tuple(found)


def _depth(names: Names, root: int, folder: int) -> int:
    for depth in range(_MAX_PARTS):
        if folder == root:
            return depth
        folder = names.parent(folder)
    return _MAX_PARTS
