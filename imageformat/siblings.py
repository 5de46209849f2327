"""The other files that one image may open: parts, parents, backing files.

The name of such a file comes out of an image, which may be hostile. So only plain files at or below the
image's own folder are opened, wherever links lead, and besides them those that the user named.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import AccessDeniedError, ChainCycleError, ParentMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageformat.device import BlockDevice
    from imageformat.storage import Storage

_NOT_A_PATH = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""A protocol (``nbd:``, ``https:``, ``json:``): two letters or more, so that a drive letter is none."""
_LONGEST_LINE = 100
"""Files that stand on each other; each is a few calls deeper."""
_DRIVE = re.compile(r"[a-z]:/", re.IGNORECASE)


class Sibling(NamedTuple):
    """Another file of an image, opened."""

    device: BlockDevice
    """The caller closes it."""
    name: str
    """Names the file in errors."""
    siblings: Siblings
    """What that file may open in turn: nothing but what the image may."""


class NamedFile(NamedTuple):
    """A file that the user named to be opened when an image asks for it."""

    path: str
    storage: Storage
    key: str


class Siblings:
    """See the module. ``key`` is the image's own; ``top`` limits what may be reached. Thread-safe.

    ``line`` are the files, by place and key, that stand on this one; without ``trusted`` only what the user
    named is opened.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        named: Sequence[NamedFile] = (),
        top: str | None = None,
        *,
        line: Sequence[tuple[str, str]] = (),
        trusted: bool = True,
    ) -> None:
        self._storage = storage
        self._key = key
        self._folder = key[: key.rfind("/") + 1]
        self._top = self._folder if top is None else top
        self._named = tuple(named)
        self._line = (*line, (storage.url, key))
        self._trusted = trusted

    def guessed(self) -> Siblings:
        """Return what the same file may open when only its content says of which format it is.

        Whoever wrote that content may have had no right to name files: a guest that owns a raw disk.
        """
        return Siblings(self._storage, self._key, self._named, self._top, line=self._line[:-1], trusted=False)

    @property
    def modified_ns(self) -> int:
        """When the image's own file was last written: UTC, nanoseconds since 1970; 0 when unknown."""
        return self._storage.modified_ns(self._key)

    @property
    def named(self) -> tuple[str, ...]:
        """The paths of the files that the user named, each of which `open` takes."""
        return tuple(named.path for named in self._named)

    def names(self) -> tuple[str, ...]:
        """List the plain files in the image's own folder, itself included, in order.

        Raises:
            NotFoundError, AccessDeniedError, StorageError
        """
        found = self._storage.objects(self._folder)
        return tuple(stored.key[len(self._folder) :] for stored in found)

    def open(self, name: str) -> Sibling:
        r"""Open the file that an image calls ``name``: a path with ``/`` or ``\\``, relative to its folder.

        Raises:
            AccessDeniedError: the image may not open it; the message says how the user can allow it.
            ParentMissingError: it is not there.
            ChainCycleError: it stands on the image, or there are too many below each other.
            StorageError
        """
        path = name.replace("\\", "/")
        if "\0" in name or not path or (_NOT_A_PATH.match(path) and not _DRIVE.match(path)):
            raise AccessDeniedError(f"{self._key}: refers to {name!r}, which is no file; that is not opened")
        named = self._named_by_user(path)
        if named is not None:
            self._refuse_circle(name, named.storage, named.key)
            siblings = Siblings(named.storage, named.key, self._named, line=self._line)
            return Sibling(named.storage.open(named.key), named.path, siblings)
        key = self._own_key(path)
        if key is None or not self._storage.holds(key, self._top):
            raise self._refusal(name, key)
        if not self._trusted:
            raise AccessDeniedError(
                f"{self._key}: needs {name!r}, but what stands on it does not say that it is such an image; "
                "if you trust it, name that file with --backing"
            )
        self._refuse_circle(name, self._storage, key)
        siblings = Siblings(self._storage, key, self._named, self._top, line=self._line)
        return Sibling(self._storage.open(key), key, siblings)

    def _refuse_circle(self, name: str, storage: Storage, key: str) -> None:
        if (storage.url, key) in self._line:
            raise ChainCycleError(f"{self._key}: needs {name!r}, which stands on it")
        if len(self._line) > _LONGEST_LINE:
            raise ChainCycleError(f"{self._key}: more than {_LONGEST_LINE} files stand on each other")

    def _named_by_user(self, path: str) -> NamedFile | None:
        """Find the named file by its whole path, else by its last component."""
        for named in self._named:
            if named.path.replace("\\", "/") == path:
                return named
        base = posixpath.basename(path)
        found = [named for named in self._named if named.key.rsplit("/", 1)[-1] == base]
        return found[0] if len(found) == 1 else None

    def _own_key(self, path: str) -> str | None:
        """Return the key of a path if it does not leave the top folder by its text alone."""
        if _DRIVE.match(path):
            return None
        if path.startswith("/"):
            root = posixpath.normpath(self._storage.url.removeprefix("file://"))
            if not root.startswith("/") or not posixpath.normpath(path).startswith(root.rstrip("/") + "/"):
                return None
            key = posixpath.relpath(posixpath.normpath(path), root)
        else:
            key = posixpath.normpath(posixpath.join(self._folder, path))
        return key if key.startswith(self._top) and not key.startswith("../") else None

    def _refusal(self, name: str, key: str | None) -> AccessDeniedError | ParentMissingError:
        if key is not None and not self._storage.modified_ns(key):
            return ParentMissingError(
                f"{self._key}: needs {name!r}, which is missing; put it back, or name it with --backing"
            )
        return AccessDeniedError(
            f"{self._key}: needs {name!r}, which is no plain file in the image's own folder; "
            "if you trust the image, name that file with --backing"
        )
