"""The numbers under which the kernel knows places of a mount, and when it may forget them."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from mountfs.fuseprotocol import ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from mountfs.posixview import Attributes


class Place:
    """One place that the kernel knows by number: its path, and how often the kernel was told of it."""

    __slots__ = ("anchor", "identity", "key", "lookups", "path")

    def __init__(
        self, path: bytes, key: tuple[int, bytes], identity: Hashable | None, anchor: Place | None
    ) -> None:
        self.path = path
        self.key = key
        self.identity = identity
        """Of a volatile place: what stood there. None: the place never changes by itself."""
        self.anchor = self if identity is not None else anchor
        """The nearest volatile place at or above: this one is true while that is."""
        self.lookups = 0


class NodeTable:
    """Places by number. Any number of threads may call it at once.

    A volatile name that stands for something else gets a new number, and so does all that lies below it:
    what the kernel cached under the old numbers is never mistaken for the new.
    """

    def __init__(self, attributes: Callable[[bytes], Attributes]) -> None:
        self._attributes = attributes
        root = Place(b"/", (0, b""), attributes(b"/").volatile, None)
        self._places: dict[int, Place] = {ROOT_ID: root}
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._next = ROOT_ID + 1
        self._lock = threading.Lock()

    def path(self, node: int) -> bytes:
        """Return the path of a node.

        Raises:
            OSError: ESTALE: something else stands there by now, or above it.
        """
        place = self._places.get(node)
        if place is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        anchor = place.anchor
        if anchor is not None and self._attributes(anchor.path).volatile != anchor.identity:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return place.path

    def child_path(self, parent: int, name: bytes) -> bytes:
        """Return the path of a name in a folder."""
        path = self.path(parent)
        return b"/" + name if path == b"/" else path + b"/" + name

    def enter(self, parent: int, name: bytes, path: bytes, identity: Hashable | None) -> int:
        """Return the number of a place that the kernel is about to be told of, counting that."""
        key = (parent, name)
        with self._lock:
            number = self._numbers.get(key)
            if number is None or self._places[number].identity != identity:
                above = self._places.get(parent)
                number, self._next = self._next, self._next + 1
                self._numbers[key] = number
                self._places[number] = Place(path, key, identity, above.anchor if above else None)
            self._places[number].lookups += 1
            return number

    def forget(self, node: int, count: int) -> None:
        """The kernel forgot ``count`` of the times it was told of a node."""
        with self._lock:
            place = self._places.get(node)
            if place is None or node == ROOT_ID:
                return
            place.lookups -= count
            if place.lookups <= 0:
                del self._places[node]
                if self._numbers.get(place.key) == node:
                    del self._numbers[place.key]

    def __len__(self) -> int:
        return len(self._places)
