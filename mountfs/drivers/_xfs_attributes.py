"""Extended attributes of XFS: inside the inode, in leaves of a tree, and values in blocks of their own.

Access control lists are stored as attributes in a form of their own and answered in the form of the system
call (``posix_acl_xattr.h``). Attributes that were being written when the machine stopped, and the pointers
to parents that the file system keeps for itself, are left out, as the kernel does.

Source: "XFS Algorithms & Data Structures", section Extended Attributes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._content import RunContent
from mountfs.drivers._xfs_inode import FORMAT_LOCAL
from mountfs.drivers._xfs_layout import BlockHeader
from mountfs.drivers._xfs_mapping import map_fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import RunList
    from mountfs.drivers._xfs_inode import Inode
    from mountfs.drivers._xfs_layout import Superblock

_LOCAL, _ROOT, _SECURE, _PARENT, _INCOMPLETE = 0x01, 0x02, 0x04, 0x08, 0x80
_ACLS = {b"SGI_ACL_FILE": "system.posix_acl_access", b"SGI_ACL_DEFAULT": "system.posix_acl_default"}
_NAMED_TAGS = {0x2, 0x8}
_NOBODY = 0xFFFF_FFFF

_LEAF, _NODE = {4: 0xFBEE, 5: 0x3BEE}, {4: 0xFEBE, 5: 0x3EBE}
_COUNT_AT = {4: 12, 5: 56}
_LEAF_HEADER, _NODE_HEADER = {4: 32, 5: 80}, {4: 16, 5: 64}
_PROOF = BlockHeader(checksum=12, address=16, uuid=32, owner=48)
_MAX_LEVELS = 8

_REMOTE_MAGIC = b"XARM"
_REMOTE_HEADER = 56
_REMOTE_PROOF = BlockHeader(checksum=12, address=40, uuid=16, owner=32)

_MAX_VALUE = 65_536
_MAX_TOTAL = 64 << 20
"""Names and values of one inode; Linux cannot list more than 64 KiB of names."""


class _Entry(NamedTuple):
    flags: int
    name: bytes
    value: bytes
    block: int
    """Of the attribute fork, where a value lies that is not in ``value``."""
    size: int


def read_attributes(device: BlockDevice, layout: Superblock, inode: Inode) -> dict[str, bytes]:
    """Read all attributes of an inode, by the names that Linux gives them.

    Raises:
        VolumeError: something is damaged.
    """
    fork = inode.attribute_fork
    if fork is None:
        return {}
    if fork.format == FORMAT_LOCAL:
        return dict(_named(entry, entry.value) for entry in _short(fork.raw) if _is_shown(entry))
    runs = map_fork(device, layout, inode.number, fork)
    if not len(runs):
        return {}
    reader = _Reader(layout, inode.number, RunContent(device, runs, runs.end), runs)
    found: dict[str, bytes] = {}
    total = 0
    for entry in reader.entries():
        if _is_shown(entry):
            total += len(entry.name) + entry.size
            if total > _MAX_TOTAL:
                raise VolumeError(f"inode {inode.number} has more than {_MAX_TOTAL} bytes of attributes")
            name, value = _named(entry, entry.value if entry.flags & _LOCAL else reader.remote(entry))
            found[name] = value
    return found


def _is_shown(entry: _Entry) -> bool:
    return not entry.flags & (_PARENT | _INCOMPLETE)


def _named(entry: _Entry, value: bytes) -> tuple[str, bytes]:
    if entry.flags & _ROOT and entry.name in _ACLS:
        return _ACLS[entry.name], _acl(value)
    space = "trusted." if entry.flags & _ROOT else "security." if entry.flags & _SECURE else "user."
    return space + entry.name.decode("utf-8", "surrogateescape"), value


def _acl(stored: bytes) -> bytes:
    """Convert a list: a count, then entries of tag, id, permissions, all big-endian."""
    (count,) = struct.unpack_from(">I", stored, 0)
    if len(stored) != 4 + 12 * count:
        raise VolumeError("an access control list is damaged")
    out = [struct.pack("<I", 2)]
    for tag, identity, permissions, _ in struct.iter_unpack(">IIHH", stored[4:]):
        out.append(
            struct.pack("<HHI", tag & 0xFFFF, permissions, identity if tag in _NAMED_TAGS else _NOBODY)
        )
    return b"".join(out)


def _short(raw: bytes) -> Iterator[_Entry]:
    size, count = struct.unpack_from(">HB", raw, 0)
    at = 4
    for _ in range(count):
        name_length, value_length, flags = raw[at], raw[at + 1], raw[at + 2]
        end = at + 3 + name_length + value_length
        if end > min(size, len(raw)):
            raise VolumeError("an extended attribute is damaged: it does not fit into the inode")
        split = at + 3 + name_length
        yield _Entry(flags, raw[at + 3 : split], raw[split:end], 0, value_length)
        at = end


class _Reader:
    """Reads the attribute fork of one inode; every block of the tree is read once, so a loop is an error."""

    def __init__(self, layout: Superblock, owner: int, content: RunContent, runs: RunList) -> None:
        self._layout = layout
        self._owner = owner
        self._content = content
        self._runs = runs
        self._seen: set[int] = set()
        self._what = f"an attribute block of inode {owner}"

    def entries(self) -> Iterator[_Entry]:
        """Yield what all leaves hold: the first is at the left of the tree, and each names the next."""
        number: int = self._first_leaf()
        while True:
            raw = self._block(number)
            yield from self._leaf(raw)
            (number,) = struct.unpack_from(">I", raw, 0)
            if not number:
                return
            self._once(number)

    def remote(self, entry: _Entry) -> bytes:
        """Read a value from its own blocks; in v5 each of them has a header."""
        if entry.size > _MAX_VALUE:
            raise VolumeError(f"the extended attribute {entry.name!r} is damaged: {entry.size} bytes")
        size = self._layout.block_size
        if not self._layout.has_checksums:
            return self._read(entry.block * size, entry.size)
        parts: list[bytes] = []
        block, position = entry.block, 0
        while position < entry.size:
            raw = self._read(block * size, size)
            offset, length = struct.unpack_from(">II", raw, 4)
            wanted = min(entry.size - position, size - _REMOTE_HEADER)
            if raw[:4] != _REMOTE_MAGIC or (offset, length) != (position, wanted):
                raise VolumeError(
                    f"the extended attribute {entry.name!r} is damaged: a bad block of its value"
                )
            where = self._runs.source_of(block * size)
            self._layout.prove_block(raw, _REMOTE_PROOF, self._owner, where, self._what)
            parts.append(raw[_REMOTE_HEADER : _REMOTE_HEADER + length])
            block, position = block + 1, position + length
        return b"".join(parts)

    def _first_leaf(self) -> int:
        number, version = 0, self._layout.version
        for _ in range(_MAX_LEVELS):
            self._once(number)
            raw = self._block(number)
            (magic,) = struct.unpack_from(">H", raw, 8)
            if magic == _LEAF[version]:
                return number
            if magic != _NODE[version]:
                break
            (_, number) = struct.unpack_from(">II", raw, _NODE_HEADER[version])
        raise VolumeError(f"{self._what} is damaged: it is none")

    def _leaf(self, raw: bytes) -> Iterator[_Entry]:
        version = self._layout.version
        (magic,) = struct.unpack_from(">H", raw, 8)
        (count,) = struct.unpack_from(">H", raw, _COUNT_AT[version])
        start = _LEAF_HEADER[version]
        if magic != _LEAF[version] or start + count * 8 > len(raw):
            raise VolumeError(f"{self._what} is damaged: it is no leaf")
        for at in range(start, start + count * 8, 8):
            place, flags = struct.unpack_from(">HB", raw, at + 4)
            if flags & _LOCAL:
                value_length, name_length = struct.unpack_from(">HB", raw, place)
                split = place + 3 + name_length
                name, value = raw[place + 3 : split], raw[split : split + value_length]
                entry = _Entry(flags, name, value, 0, value_length)
                fits = len(value) == value_length
            else:
                block, size, name_length = struct.unpack_from(">IIB", raw, place)
                name = raw[place + 9 : place + 9 + name_length]
                entry = _Entry(flags, name, b"", block, size)
                fits = True
            if not fits or len(name) != name_length:
                raise VolumeError(f"{self._what} is damaged: an attribute does not fit")
            yield entry

    def _block(self, number: int) -> bytes:
        size = self._layout.block_size
        raw = self._read(number * size, size)
        if self._layout.has_checksums:
            where = self._runs.source_of(number * size)
            self._layout.prove_block(raw, _PROOF, self._owner, where, self._what)
        return raw

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._content.size:
            raise VolumeError(f"{self._what} is damaged: it lies behind the attributes")
        return self._content.read(offset, size)

    def _once(self, number: int) -> None:
        if number in self._seen:
            raise VolumeError(f"{self._what} is damaged: a loop")
        self._seen.add(number)
