"""NTFS: libtsk maps and decompresses files; names, times and special files come from the records.

What NTFS keeps as access control lists is an extended attribute and not translated: root owns everything,
mode 0777, as ntfs-3g shows it without a user mapping. Files that NTFS itself uses (numbers below 16) are
hidden, as ntfs-3g does.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytsk3

from imageformat.errors import VolumeError
from mountfs.drivers import _ntfs_records as records
from mountfs.drivers._content import RunContent, read_at
from mountfs.drivers._ntfs_attributes import ACL, OS2, REPARSE, os2_attributes, plain_attributes
from mountfs.drivers._ntfs_compact import COMPACT_STREAM, CompactContent
from mountfs.drivers._ntfs_links import Names, plain_target, posix_target
from mountfs.drivers._ntfs_security import SecurityStream
from mountfs.drivers._ntfs_special import (
    FLAG_ENCRYPTED,
    FLAG_REPARSE,
    FLAG_SYSTEM,
    Special,
    from_reparse,
    from_system_file,
)
from mountfs.drivers._tree import ChunkReader, Listing, ListingBuilder, reading
from mountfs.drivers._tsk_library import (
    ATTRIBUTE_COMPRESSED,
    ATTRIBUTE_ENCRYPTED,
    ATTRIBUTE_RESIDENT,
    LibraryContent,
    TskFileSystem,
)
from mountfs.tree import Node, NodeKind, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.drivers._tsk_types import TskAttribute, TskFile

_MFT = 0
_ROOT = 5
_SECURE = 9
_FIRST_USER = 16
_I30 = "$I30".encode("utf-16-le")
_MAX_INDEX = 4 << 30
_MAX_ATTRIBUTE_LIST = 256 << 10
"""The limit of NTFS itself."""


class _Facts(NamedTuple):
    """What a file's base record says of it."""

    record: records.FileRecord
    times: tuple[int, int, int, int]
    flags: int
    security: int
    """Number of its security descriptor; 0: it has its own, or none."""
    size: int
    special: Special


class NtfsVolume:
    """A `Volume` over one NTFS file system. Keys are record numbers."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._record_size = _record_size(read_at(device, 0, 512, "the NTFS boot sector"))
        self._library = TskFileSystem(device, pytsk3.TSK_FS_TYPE_NTFS)
        with self._library.calling("the master file table cannot be read"):
            _, found = self._library.attributes(_MFT)
            tables = [a for a in found if int(a.info.type) == records.DATA and not a.info.name]
            if not tables:
                raise VolumeError("the master file table has no content")
            size = int(tables[0].info.size)
            self._table = self._library.runs(tables[0], size)
        self._table_size = size
        self._chunks = ChunkReader(device)
        self._names = Names(self)
        self._lock = threading.Lock()
        self._security: SecurityStream | None = None

    def root(self) -> Node:
        """See `Volume.root`."""
        facts = self._facts(_ROOT)
        if not facts.record.is_directory:
            raise VolumeError("the root of the file system is not a directory")
        return _node(b"", _ROOT, facts)

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        for entry in self._index(_number(node), found):
            if entry.number < _FIRST_USER:
                continue
            try:
                found.add(self._entry_node(entry))
            except VolumeError as error:
                found.damaged(f"{entry.name!r} cannot be read: {error}")
        return found.done()

    def _entry_node(self, entry: records.IndexEntry) -> Node:
        with reading("its record"):
            facts = self._facts(entry.number)
        if not facts.record.in_use or facts.record.sequence != entry.sequence:
            raise VolumeError("its record belongs to another file")
        return _node(entry.name, entry.number, facts)

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`."""
        facts = self._facts(_number(node))
        special = facts.special
        if stream is None and special.compact is not None:
            packed = self._find_content(node, facts, COMPACT_STREAM)
            if packed is not None:
                return CompactContent(packed, facts.size, special.compact)
        if stream is None and special.refusal:
            raise VolumeError(f"{node.name!r} {special.refusal}")
        content = self._find_content(node, facts, stream)
        if content is None and stream is None:
            raise VolumeError(f"{node.name!r} has no data")
        return content

    def _find_content(self, node: Node, facts: _Facts, stream: bytes | None) -> Content | None:
        number = _number(node)
        with self._library.calling(f"{node.name!r} cannot be read"):
            file, attributes = self._library.attributes(number)
            for attribute in attributes:
                if int(attribute.info.type) == records.DATA and (attribute.info.name or None) == stream:
                    return self._attribute_content(number, facts, file, attribute)
        return None

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        return self._facts(_number(node)).special.target

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`; the names and forms are those of ntfs-3g."""
        number = _number(node)
        facts = self._facts(number)
        birth, is_directory = facts.times[0], facts.record.is_directory
        found = plain_attributes(facts.flags, birth, is_directory=is_directory)
        stored = {
            ACL: self._descriptor(number, facts),
            OS2: self._value(number, facts.record, records.OS2_ATTRIBUTES),
            REPARSE: self._value(number, facts.record, records.REPARSE_POINT),
        }
        return found | {name: value for name, value in stored.items() if value}

    def _descriptor(self, number: int, facts: _Facts) -> bytes:
        if not facts.security:
            return self._value(number, facts.record, records.SECURITY_DESCRIPTOR)
        with self._lock:
            if self._security is None:
                self._security = self._open_security()
        return self._security.descriptor(facts.security)

    def _open_security(self) -> SecurityStream:
        with self._library.calling("the security descriptors cannot be read"):
            file, attributes = self._library.attributes(_SECURE)
            for attribute in attributes:
                if int(attribute.info.type) == records.DATA and attribute.info.name == b"$SDS":
                    return SecurityStream(
                        self._attribute_content(_SECURE, self._facts(_SECURE), file, attribute)
                    )
        raise VolumeError("the volume has no stream of security descriptors")

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `Volume.streams`; one that holds the content of a compressed file is not shown."""
        compact = self._facts(_number(node)).special.compact
        with self._library.calling(f"the streams of {node.name!r} cannot be read"):
            _, attributes = self._library.attributes(_number(node))
            return tuple(
                Stream(bytes(attribute.info.name), int(attribute.info.size))
                for attribute in attributes
                if int(attribute.info.type) == records.DATA
                and attribute.info.name
                and (compact is None or attribute.info.name != COMPACT_STREAM)
            )

    def close(self) -> None:
        """The device belongs to the caller; libtsk's memory goes with this object."""

    def _attribute_content(
        self, number: int, facts: _Facts, file: TskFile, attribute: TskAttribute
    ) -> Content:
        flags, size = int(attribute.info.flags), int(attribute.info.size)
        if flags & ATTRIBUTE_ENCRYPTED or facts.flags & FLAG_ENCRYPTED:
            raise VolumeError("the file is encrypted by Windows (EFS); its key is not in the image")
        initialized = self._initialized(number, facts.record, bytes(attribute.info.name or b""))
        if flags & (ATTRIBUTE_RESIDENT | ATTRIBUTE_COMPRESSED) or initialized is None:
            return LibraryContent(self._library, file, attribute)
        return RunContent(self._device, self._library.runs(attribute, min(size, initialized)), size)

    def _initialized(self, number: int, record: records.FileRecord, name: bytes) -> int | None:
        """Return how many bytes of a stream were ever written; the rest reads as zeros. None: not found."""
        wanted = name.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
        own = record.find(records.DATA, wanted)
        if own is not None:
            return own.initialized
        for kind, other, first, holder in records.attribute_list(self._attribute_list(number, record)):
            if kind == records.DATA and other == wanted and not first and holder != number:
                found = self._record(holder).find(records.DATA, wanted)
                return None if found is None else found.initialized
        return None

    def _attribute_list(self, number: int, record: records.FileRecord) -> bytes:
        own = record.find(records.ATTRIBUTE_LIST)
        if own is None or own.value is not None:
            return own.value or b"" if own is not None else b""
        if own.size > _MAX_ATTRIBUTE_LIST:
            raise VolumeError(f"an attribute list of {own.size} bytes")
        return self._whole(number, records.ATTRIBUTE_LIST, _MAX_ATTRIBUTE_LIST)

    def _value(self, number: int, record: records.FileRecord, kind: int) -> bytes:
        """Read an unnamed attribute of at most 64 KiB; nothing where there is none."""
        own = record.find(kind)
        if own is not None and own.value is not None:
            return own.value
        if own is None and record.find(records.ATTRIBUTE_LIST) is None:
            return b""
        return self._whole(number, kind, 1 << 16)

    def _whole(self, number: int, kind: int, limit: int) -> bytes:
        """Read a whole unnamed or index attribute through libtsk."""
        with self._library.calling(f"attribute {kind:#x} of file {number} cannot be read"):
            file, attributes = self._library.attributes(number)
            for attribute in attributes:
                if int(attribute.info.type) == kind and attribute.info.name in {None, b"", b"$I30"}:
                    if int(attribute.info.size) > limit:
                        raise VolumeError(f"attribute {kind:#x} of file {number} is too large")
                    content = LibraryContent(self._library, file, attribute)
                    return content.read(0, content.size) if content.size else b""
        return b""

    def _record(self, number: int) -> records.FileRecord:
        size = self._record_size
        at = number * size
        if at + size > self._table_size:
            raise VolumeError(f"file record {number} does not exist")
        parts = self._table.between(at, size)
        raw = b"".join(self._chunks.read(run.source, run.length, "a file record") for run in parts)
        if len(raw) != size:
            raise VolumeError(f"file record {number} lies in a hole of the master file table")
        return records.parse_record(raw)

    def _facts(self, number: int) -> _Facts:
        record = self._record(number)
        standard = record.find(records.STANDARD_INFORMATION)
        if standard is None or standard.value is None:
            raise VolumeError(f"file record {number} has no standard information")
        birth, mtime, ctime, atime, flags = struct.unpack_from("<QQQQI", standard.value, 0)
        security = struct.unpack_from("<I", standard.value, 52)[0] if len(standard.value) >= 72 else 0
        size, data = (0, None) if record.is_directory else self._main_data(number, record)
        special = Special()
        if flags & FLAG_REPARSE:
            special = self._reparse(number, record, flags)
        elif flags & FLAG_SYSTEM and not record.is_directory:
            special = from_system_file(data, size, flags)
        return _Facts(record, (birth, mtime, ctime, atime), flags, security, size, special)

    def _main_data(self, number: int, record: records.FileRecord) -> tuple[int, bytes | None]:
        own = record.find(records.DATA)
        if own is not None:
            return own.size, own.value
        if record.find(records.ATTRIBUTE_LIST) is None:
            return 0, None
        with self._library.calling(f"file {number} cannot be read"):
            return int(self._library.meta(self._library.open_inode(number)).size), None

    def _reparse(self, number: int, record: records.FileRecord, flags: int) -> Special:
        raw = self._value(number, record, records.REPARSE_POINT) or bytes(8)
        os2 = dict(os2_attributes(self._value(number, record, records.OS2_ATTRIBUTES)))
        special = from_reparse(raw, flags, os2)
        if not special.is_windows:
            return special
        try:
            target = posix_target(self._names, _ROOT, number, special.target)
        except VolumeError:
            target = plain_target(special.target)
        return special._replace(target=target)

    def parent(self, number: int) -> int:
        """Return the number of the directory that a file lies in."""
        name = self._value(number, self._record(number), records.FILE_NAME)
        if not name:
            raise VolumeError(f"file {number} has no name")
        return records.parent_of(name)

    def entries(self, number: int) -> Iterator[records.IndexEntry]:
        """Yield the names of a directory; of a damaged one, what can be read."""
        return self._index(number, ListingBuilder())

    def _index(self, number: int, found: ListingBuilder) -> Iterator[records.IndexEntry]:
        """Yield the names of a directory: those in its root, and in each index block in use."""
        root = self._whole(number, records.INDEX_ROOT, 1 << 16)
        if not root:
            raise VolumeError(f"file {number} has no directory index")
        yield from records.index_root_entries(root)
        content = self._index_allocation(number)
        if content is None:
            return
        size = records.index_block_size(root)
        used = self._whole(number, records.BITMAP, _MAX_INDEX // size)
        for block in range(min(content.size // size, len(used) * 8)):
            if used[block // 8] >> block % 8 & 1:
                try:
                    yield from records.index_block_entries(content.read(block * size, size))
                except (VolumeError, struct.error) as error:
                    found.damaged(f"a directory is damaged: {error}")

    def _index_allocation(self, number: int) -> RunContent | None:
        with self._library.calling(f"the index of directory {number} cannot be read"):
            _, attributes = self._library.attributes(number)
            for attribute in attributes:
                kind, size = int(attribute.info.type), int(attribute.info.size)
                if kind == records.INDEX_ALLOCATION and attribute.info.name == b"$I30":
                    if size > min(_MAX_INDEX, self._device.size):
                        raise VolumeError(f"a directory index of {size} bytes")
                    return RunContent(self._device, self._library.runs(attribute, size), size)
        return None


def _record_size(boot: bytes) -> int:
    sector, per_cluster = struct.unpack_from("<HB", boot, 11)
    (clusters,) = struct.unpack_from("<b", boot, 64)
    size = 1 << -clusters if -32 < clusters < 0 else int(clusters) * sector * per_cluster
    if boot[3:11] != b"NTFS    ":
        raise VolumeError("not an NTFS file system: the boot sector does not name it")
    if not 512 <= size <= 65_536 or size & (size - 1):
        raise VolumeError(f"the NTFS boot sector is damaged: file records of {size} bytes")
    return int(size)


def _number(node: Node) -> int:
    if not isinstance(node.key, int):
        raise VolumeError(f"{node.name!r} is not a node of this file system")
    return node.key


def _node(name: bytes, number: int, facts: _Facts) -> Node:
    kind = facts.special.kind or (NodeKind.DIRECTORY if facts.record.is_directory else NodeKind.FILE)
    birth, mtime, ctime, atime = facts.times
    return Node(
        name=name,
        kind=kind,
        key=number,
        size={NodeKind.FILE: facts.size, NodeKind.SYMLINK: len(facts.special.target)}.get(kind, 0),
        mode=0o777,
        links=max(1, facts.record.links),
        inode=number,
        atime_ns=records.to_unix_ns(atime),
        mtime_ns=records.to_unix_ns(mtime),
        ctime_ns=records.to_unix_ns(ctime),
        birth_ns=records.to_unix_ns(birth),
        device=facts.special.device,
    )
