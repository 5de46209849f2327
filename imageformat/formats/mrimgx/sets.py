"""Which files a point needs: found in its folder by what they say, chosen by the rules of the format.

Nothing is guessed: a number that no file holds, or that two different files claim, is an error that names
the files. Source: mrimgx_file_layout and what its reader does; it is stricter than that reader, which
builds a wrong image when a file from the middle of a chain is missing.
"""

from __future__ import annotations

import posixpath
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.errors import (
    AccessDeniedError,
    ImageError,
    NotFoundError,
    ParentMismatchError,
    ParentMissingError,
    PartOfImageError,
)
from imageformat.formats.mrimgx.member import open_member
from imageformat.formats.mrimgx.model import recorded_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imageformat.formats.mrimgx.member import Member
    from imageformat.siblings import Siblings

SUFFIXES = (".mrimgx", ".mrbakx", ".mrimg", ".mrbak")
_NOT_FOR_US = (AccessDeniedError, NotFoundError, ParentMissingError)
"""Why a file of the folder is none of the set. A storage that fails is an error, whatever the file is."""


@dataclass(frozen=True, slots=True)
class ChainMembers:
    """The files whose indexes make up a point."""

    base: Member
    """With the complete index that all starts from."""
    deltas: tuple[Member, ...]
    """Whose changes are applied to it, in this order."""


@dataclass(slots=True)
class Folder:
    """The files of one set that lie beside an opened one and are older. One thread, while it is opened."""

    own: Member
    own_name: str
    """Of the file, without its folder."""
    siblings: Siblings
    stack: ExitStack
    """Closes every file that is opened here."""
    _peers: list[Member] | None = None
    _unreadable: list[str] = field(default_factory=list)

    def peers(self) -> list[Member]:
        """Return the older files of the set, each content once."""
        if self._peers is None:
            self._peers = []
            for name in self.siblings.names():
                if name != self.own_name and name.lower().endswith(SUFFIXES):
                    self._consider(name)
        return self._peers

    def _consider(self, name: str) -> None:
        """Open a file and keep it if it is an older one of this set, and no copy of one that is known."""
        try:
            sibling = self.siblings.open(name)
        except _NOT_FOR_US:
            self._unreadable.append(name)
            return
        with ExitStack() as unless_kept:
            unless_kept.callback(sibling.device.close)
            try:
                member = open_member(sibling.device, posixpath.basename(sibling.name))
            except ImageError:
                self._unreadable.append(name)
                return
            if not self._is_older(member):
                return
            self.stack.push(unless_kept.pop_all())
        peers = self._peers if self._peers is not None else []
        peers.append(member)

    def _is_older(self, member: Member) -> bool:
        own, other = self.own.document.header, member.document.header
        return (
            other.image_id == own.image_id
            and other.increment_number <= own.increment_number
            and other.file_number < own.file_number
            and all(member.json_md5 != peer.json_md5 for peer in self._peers or ())
        )

    def owner(self, number: int) -> Member:
        """Return the file that holds a number of the set.

        Raises:
            ParentMissingError: no file does.
            ParentMismatchError: two different files do, or one that was merged with newer ones.
        """
        if number in self.own.document.header.owned:
            return self.own
        found = [member for member in self.peers() if number in member.document.header.owned]
        if not found:
            found = self._named(number)
        if not found:
            raise self._missing(number)
        if len(found) > 1:
            raise ParentMismatchError(
                f"{self.own.name}: two different files claim number {number} of its set: "
                f"{_list(member.name for member in found)}; leave only the right one there"
            )
        member = found[0]
        if max(member.document.header.owned) >= self.own.document.header.file_number:
            raise ParentMismatchError(
                f"{self.own.name}: was merged into {member.name}, which holds newer changes as well; "
                "open a newer point of the set"
            )
        return member

    def _named(self, number: int) -> list[Member]:
        """Look where the user may have pointed to: the name that the opened file knows the other by."""
        before = len(self.peers())
        name = recorded_names(self.own.document).get(number, "")
        if name:
            noted = len(self._unreadable)
            self._consider(name)
            del self._unreadable[noted:]
        return [member for member in self.peers()[before:] if number in member.document.header.owned]

    def _missing(self, number: int) -> ParentMissingError:
        name = recorded_names(self.own.document).get(number, "")
        called = f" ({name!r} when it was made)" if name else ""
        unreadable = f"; these files beside it cannot be read: {_list(self._unreadable)}"
        return ParentMissingError(
            f"{self.own.name}: needs file number {number} of its set{called}, which is missing; put it back"
            + (unreadable if self._unreadable else "")
        )

    def chain(self) -> ChainMembers:
        """Return the files whose indexes make up the point.

        Raises:
            ParentMissingError, ParentMismatchError: one of them is missing, or not the right one.
        """
        own = self.own.document.header
        base = self._base()
        first = base.document.header.file_number
        members: dict[int, Member] = {}
        for number in range(first + 1, own.file_number + 1) if base is not self.own else ():
            member = self.owner(number)
            header = member.document.header
            if header.split_file or member is base:
                continue
            if header.file_number <= first:
                raise ParentMismatchError(
                    f"{self.own.name}: {member.name} claims number {number} of its set, but is older than "
                    f"{base.name}, which the changes start from"
                )
            members[header.file_number] = member
        deltas = tuple(members[number] for number in sorted(members))
        for member in (base, *deltas):
            self._check_layout(member)
        return ChainMembers(base, deltas)

    def _base(self) -> Member:
        """Return the newest file with a complete index, the opened one included."""
        if not self.own.document.header.delta_index:
            return self.own
        complete = [
            member.document.header.file_number
            for member in self.peers()
            if not (member.document.header.delta_index or member.document.header.split_file)
        ]
        if not complete:
            older = recorded_names(self.own.document).keys() - self.own.document.header.owned
            if not older:
                raise ParentMissingError(
                    f"{self.own.name}: holds changes only, and the files that they are changes to are missing"
                )
            raise self._missing(min(older))
        return self.owner(max(complete))

    def _check_layout(self, member: Member) -> None:
        """Refuse a file whose disks and partitions are not those of the opened one."""
        own, other = self.own.document.disks, member.document.disks
        layouts = [[[part.layout for part in disk.partitions] for disk in disks] for disks in (own, other)]
        if layouts[0] != layouts[1]:
            raise ParentMismatchError(
                f"{self.own.name}: stands on {member.name}, whose disks are partitioned differently"
            )

    def refuse_part(self) -> None:
        """Refuse to open a part of a split image that is not its last.

        Raises:
            PartOfImageError: it is one; the message names the last part when it is there.
        """
        own = self.own.document.header
        if not own.split_file:
            return
        last = "of the highest number"
        for name in self.siblings.names():
            if name != self.own_name and name.lower().endswith(SUFFIXES) and self._is_last_part(name):
                last = name
        raise PartOfImageError(
            f"{self.own.name}: is a part of a split image and nothing by itself; open the last part, {last}"
        )

    def _is_last_part(self, name: str) -> bool:
        try:
            with closing(self.siblings.open(name).device) as device:
                header = open_member(device, name).document.header
        except (*_NOT_FOR_US, ImageError):
            return False
        own = self.own.document.header
        return (
            header.image_id == own.image_id
            and header.increment_number == own.increment_number
            and not header.split_file
        )


def _list(names: Iterable[str]) -> str:
    """List some names for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
