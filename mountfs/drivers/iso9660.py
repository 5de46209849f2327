"""ISO 9660 with Rock Ridge or Joliet, read without a library.

libtsk ignores most of Rock Ridge, applies the machine's time zone and shows only the first extent of a
large file. Rock Ridge names win over Joliet, Joliet over plain names; plain names lose their version and
keep their case. Sources: ECMA-119, the Joliet specification, IEEE P1281/P1282.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers import _iso_susp as susp
from mountfs.drivers._content import RunContent, RunList, read_at
from mountfs.drivers._iso_aaip import attributes
from mountfs.drivers._iso_zisofs import Zisofs, open_zisofs
from mountfs.drivers._packed import PlainBlocks
from mountfs.drivers._tree import Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree, Stream

_SECTOR = 2048
_FIRST_DESCRIPTOR = 16
_MAX_DESCRIPTORS = 100
_JOLIET = {b"%/@", b"%/C", b"%/E"}
_ROOT_RECORD = 156
_READ_UNIT = 512 * _SECTOR
_MAX_CONTINUATION = 65_536

_FLAG_DIRECTORY = 2
_FLAG_ASSOCIATED = 4
_FLAG_MORE = 0x80

_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}


@dataclass(frozen=True, slots=True)
class IsoKey:
    """All that is needed to read a node again; equal for hard links of one file."""

    position: int = field(compare=False)
    """Of a record of it on the volume."""
    number: int
    extents: tuple[tuple[int, int], ...]
    """Byte offset and length of each part of its content."""
    target: bytes
    refusal: str
    zisofs: Zisofs | None = None


class _Record(NamedTuple):
    """One directory record (ECMA-119 9.1)."""

    position: int
    start: int
    size: int
    flags: int
    interleaved: bool
    time_ns: int
    identifier: bytes
    system_use: bytes


class IsoVolume:
    """A `Volume` over one ISO 9660 file system."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        primary, joliet = _descriptors(device)
        self._block = struct.unpack_from("<H", primary, 128)[0]
        if self._block not in {512, 1024, 2048}:
            raise VolumeError(f"the ISO 9660 volume descriptor is damaged: blocks of {self._block} bytes")
        self._root = self._record(primary[_ROOT_RECORD : _ROOT_RECORD + 34], 0)
        self._skip = self._susp_skip()
        self._plain = PlainBlocks()
        self._joliet = self._skip is None and joliet is not None
        if self._skip is None and joliet is not None:
            self._root = self._record(joliet[_ROOT_RECORD : _ROOT_RECORD + 34], 0)

    def root(self) -> Node:
        """See `Volume.root`."""
        if not self._root.flags & _FLAG_DIRECTORY:
            raise VolumeError("the ISO 9660 volume descriptor is damaged: its root is not a directory")
        own = self._own_record(self._root.start)
        return self._node(b"", [self._root], self._extra(own))

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        parts: list[_Record] = []
        for record in self._records(_key(node), found):
            if record.flags & _FLAG_ASSOCIATED or record.identifier in {b"\0", b"\1"}:
                continue
            if parts and parts[-1].identifier != record.identifier:
                found.damaged(f"the file {parts[-1].identifier!r} has no last part")
                parts = []
            parts.append(record)
            if not record.flags & _FLAG_MORE:
                self._add(found, parts)
                parts = []
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; there are no named streams."""
        key = _key(node)
        if stream is not None:
            return None
        if key.refusal:
            raise VolumeError(f"{node.name!r} {key.refusal}")
        runs, position = RunList(), 0
        for start, size in key.extents:
            runs.add(position, size, start)
            position += size
        if key.zisofs is not None:
            return open_zisofs(self._device, runs, position, key.zisofs, self._plain)
        return RunContent(self._device, runs, position)

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        return _key(node).target

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`; only libisofs writes any."""
        position = _key(node).position
        if self._skip is None:
            return {}
        own = self._own_record(position or self._root.start)
        return attributes(self._entries(own))

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _record(self, raw: bytes, position: int) -> _Record:
        """Parse one whole record; the first byte is its length."""
        own, block, size = struct.unpack_from("<BI4xI", raw, 1)
        flags, unit, gap = struct.unpack_from("<BBB", raw, 25)
        end = 33 + raw[32]
        if end > len(raw):
            raise VolumeError("a directory is damaged: a name longer than its record")
        start = (block + own) * self._block
        use = raw[end + (end & 1) :]
        when = susp.short_time(raw[18:25])
        return _Record(position, start, size, flags, bool(unit or gap), when, raw[33:end], use)

    def _records(self, key: IsoKey, found: ListingBuilder) -> Iterator[_Record]:
        """Yield the records of a directory; none crosses a sector."""
        for start, size in key.extents:
            if size > self._device.size:
                raise VolumeError(f"a directory of {size} bytes is larger than the volume")
            for offset in range(0, size, _READ_UNIT):
                raw = read_at(self._device, start + offset, min(_READ_UNIT, size - offset), "a directory")
                for at in range(0, len(raw), _SECTOR):
                    yield from self._sector(raw[at : at + _SECTOR], start + offset + at, found)

    def _sector(self, raw: bytes, position: int, found: ListingBuilder) -> Iterator[_Record]:
        at = 0
        while at < len(raw) and raw[at]:
            length = raw[at]
            if length < 34 or at + length > len(raw):
                found.damaged(f"a directory is damaged: a bad record at byte {position + at}")
                return
            yield self._record(raw[at : at + length], position + at)
            at += length

    def _own_record(self, start: int) -> _Record:
        """Return the record for ``.`` that opens a directory."""
        (length,) = read_at(self._device, start, 1, "a directory")
        if length < 34:
            raise VolumeError(f"the directory at byte {start} is damaged")
        return self._record(read_at(self._device, start, length, "a directory"), start)

    def _susp_skip(self) -> int | None:
        """Return the bytes to skip in each system use area; None without Rock Ridge."""
        own = self._own_record(self._root.start)
        skip = susp.skipped_bytes(own.system_use)
        if skip is None or not susp.is_rock_ridge(susp.entries(own.system_use, self._continuation)):
            return None
        return skip

    def _continuation(self, block: int, offset: int, size: int) -> bytes:
        if size > _MAX_CONTINUATION:
            raise VolumeError(f"a directory record claims to go on for {size} bytes")
        return read_at(self._device, block * self._block + offset, size, "a continued directory record")

    def _extra(self, record: _Record) -> susp.RockRidge:
        return susp.RockRidge() if self._skip is None else susp.parse(self._entries(record))

    def _entries(self, record: _Record) -> Iterator[tuple[bytes, bytes]]:
        skip = 0 if record.position == self._root.start else self._skip
        return susp.entries(record.system_use[skip:], self._continuation)

    def _add(self, found: ListingBuilder, parts: list[_Record]) -> None:
        try:
            with reading("its record"):
                node = self._parts_node(parts)
        except VolumeError as error:
            found.damaged(f"{parts[0].identifier!r} cannot be read: {error}")
            return
        if node is None:
            return
        if node.name in {b"", b".", b".."}:
            found.damaged(f"a directory is damaged: the name {node.name!r}")
        else:
            found.add(node)

    def _parts_node(self, parts: list[_Record]) -> Node | None:
        """Describe the records of one file; None for a directory that is listed elsewhere."""
        extra = self._extra(parts[0])
        if extra.relocated:
            return None
        name = self._name(parts[0], extra)
        if extra.child:
            own = self._own_record(extra.child * self._block)
            parts, extra = [own], self._extra(own)
        return self._node(name, parts, extra)

    def _name(self, record: _Record, extra: susp.RockRidge) -> bytes:
        if extra.name is not None:
            return extra.name
        if self._joliet:
            text = record.identifier.decode("utf-16-be", "surrogatepass" if _is_even(record) else "replace")
            name, _, version = text.rpartition(";")
            return (name if name and version.isdigit() else text).encode("utf-8", "surrogatepass")
        return record.identifier.partition(b";")[0].removesuffix(b".")

    def _node(self, name: bytes, parts: list[_Record], extra: susp.RockRidge) -> Node:
        first = parts[0]
        is_directory = bool(first.flags & _FLAG_DIRECTORY)
        kind = NodeKind.DIRECTORY if is_directory else NodeKind.FILE
        mode = 0o555 if is_directory else 0o444
        if extra.mode is not None:
            kind, mode = _KINDS.get(stat.S_IFMT(extra.mode), kind), stat.S_IMODE(extra.mode)
        if is_directory != (kind is NodeKind.DIRECTORY):
            raise VolumeError("the record and its Rock Ridge mode contradict each other")
        stored = sum(part.size for part in parts)
        plain = stored if extra.zisofs is None else extra.zisofs.size
        size = {NodeKind.FILE: plain, NodeKind.SYMLINK: len(extra.target)}.get(kind, 0)
        refusal = extra.refusal or "is interleaved, which is not supported" * any(
            p.interleaved for p in parts
        )
        shared = kind is NodeKind.FILE and extra.links > 1 and size > 0
        number = first.start if shared or is_directory else first.position
        return Node(
            name=name,
            kind=kind,
            key=IsoKey(
                first.position,
                number,
                tuple((p.start, p.size) for p in parts),
                extra.target,
                refusal,
                extra.zisofs,
            ),
            size=size,
            mode=mode,
            uid=extra.uid,
            gid=extra.gid,
            links=extra.links,
            inode=number,
            atime_ns=extra.times.get("atime", first.time_ns),
            mtime_ns=extra.times.get("mtime", first.time_ns),
            ctime_ns=extra.times.get("ctime", first.time_ns),
            birth_ns=extra.times.get("birth", 0),
            device=extra.device,
        )


def _is_even(record: _Record) -> bool:
    return len(record.identifier) % 2 == 0


def _key(node: Node) -> IsoKey:
    if not isinstance(node.key, IsoKey):
        raise VolumeError(f"{node.name!r} is not a node of this file system")
    return node.key


def _descriptors(device: BlockDevice) -> tuple[bytes, bytes | None]:
    """Return the primary and, if there is one, the Joliet volume descriptor."""
    primary: bytes | None = None
    joliet: bytes | None = None
    for number in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + _MAX_DESCRIPTORS):
        raw = read_at(device, number * _SECTOR, _SECTOR, "a volume descriptor")
        if raw[1:6] != b"CD001" or raw[0] == 255:
            break
        if raw[0] == 1 and primary is None:
            primary = raw
        if raw[0] == 2 and raw[88:91] in _JOLIET and joliet is None:
            joliet = raw
    if primary is None:
        raise VolumeError("not an ISO 9660 file system: no primary volume descriptor")
    return primary, joliet


def open_iso9660(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an ISO 9660 volume.

    Raises:
        VolumeError: it is not one, or damaged.
    """
    del info
    with reading("the volume descriptor"):
        tree = VolumeTree(IsoVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="iso9660", types=frozenset({"iso9660"}), open=open_iso9660)
