"""Dirty bitmaps of qemu, read over NBD as metadata contexts ``qemu:dirty-bitmap:NAME``.

What ties a bitmap to a point is its name, which is used once: an image records the name of the bitmap that
was begun with its picture of the disk, and its child asks for exactly that one. A bitmap that was lost in
a crash, is inconsistent, or was not exported is not offered by the server, and everything is read. Whether
it was begun in time, and never cleared, no name can prove; the samples are for that.

Sources: "Metadata contexts" of the NBD protocol; "NBD metadata namespace" of qemu (docs/interop/nbd.txt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.changes import ChangeProvider, ChangesUnknownError, Mark, Wanted
from engine.nbd.content import described
from engine.nbd.wire import DIRTY_BITMAPS
from engine.sources.nbd import NbdSource
from imageformat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "dirty-bitmap"
_MAX_NAME = 1023
"""Bytes of the name of a bitmap in a qcow2 image, and more than a server tells."""


class DirtyBitmap:
    """See `ChangeTracker`."""

    name = NAME

    def __init__(self, source: NbdSource, expected: str = "", following: str = "") -> None:
        self._source = source
        self._expected = expected
        self._following = following

    def begin(self) -> Mark | None:
        """See `ChangeTracker.begin`: it was begun by whoever made the picture."""
        if not self._following:
            return None
        return {"tracker": NAME, "bitmap": self._following, "export": self._source.client.uri.export}

    def unchanged(self, mark: Mark) -> Iterator[tuple[int, int]]:
        """See `ChangeTracker.unchanged`."""
        name = mark.get("bitmap")
        if not isinstance(name, str) or not name:
            raise ChangesUnknownError("the parent recorded no bitmap")
        if self._expected and name != self._expected:
            raise ChangesUnknownError(
                f"the parent began with the bitmap {name}, not with {self._expected}: what changed between "
                "them is in neither"
            )
        context = f"{DIRTY_BITMAPS}{name}"
        client = self._source.client
        if mark.get("export") != client.uri.export:
            raise ChangesUnknownError(f"the parent is of the export {mark.get('export')!r}")
        if context not in client.export.contexts:
            raise ChangesUnknownError(
                f"the server does not offer the bitmap {name} that the parent began with"
            )
        for piece in described(client, context, 0, self._source.size):
            if piece.flags == 0:
                yield piece.offset, piece.offset + piece.length

    def settle(self, *, published: bool) -> None:
        """See `ChangeTracker.settle`: bitmaps belong to the virtual machine."""


def _open(wanted: Wanted) -> DirtyBitmap:
    if not isinstance(wanted.source, NbdSource):
        raise UsageError(f"--changed {NAME} is for disks of an NBD server: nbd:// and nbd+unix://")
    name = wanted.next_bitmap
    if len(name.encode()) > _MAX_NAME:
        raise UsageError(f"--next-bitmap: the name of a bitmap has at most {_MAX_NAME} bytes")
    if name and any(mark is not None and mark.get("bitmap") == name for mark in wanted.marks()):
        raise UsageError(
            f"--next-bitmap {name}: an image of this set began with a bitmap of that name already; begin one "
            "of a new name with each picture, or what changed in between is lost"
        )
    return DirtyBitmap(wanted.source, wanted.parameter, name)


PLUGIN = ChangeProvider(NAME, _open, lambda wanted: isinstance(wanted.source, NbdSource))
