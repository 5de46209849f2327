"""The messages of FUSE as the kernel speaks it on ``/dev/fuse``: bytes to values and back, nothing else.

Source: ``include/uapi/linux/fuse.h`` of Linux, protocol 7.31 and later. Numbers are in the byte order of
the machine. Requests begin with a header of 40 bytes, answers with one of 16.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.posixview import Attributes

MAJOR, MINOR = 7, 31
OLDEST_MINOR = 23
ROOT_ID = 1
MAX_WRITE = 4096
"""Nothing is ever written; a small value keeps the buffer for requests small."""
REQUEST_SIZE = 64 << 10
"""Room for a request: the kernel demands 8 KiB; the longest names and batches of forgets fit."""
MAX_PAGES = 256
"""Of a read: 1 MiB, the most that the kernel grants."""
READ = 15
"""`Opcode.READ` as a plain number: comparing with a member of an enumeration takes longer."""
KEEP_CACHE = 1 << 1
"""Of an open file: what the kernel cached of it before is still right."""
CACHE_FOLDER = 1 << 3
"""Of an open folder: the kernel may remember what it lists, and need not ask again."""

_HEADER = struct.Struct("=IIQQIIII")
HEADER_SIZE = _HEADER.size
_ANSWER = struct.Struct("=IiQ")
ANSWER_SIZE = _ANSWER.size
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_READ_IN = struct.Struct("=QQI")
_READ_REQUEST = struct.Struct("=4xIQQ16xQQI")
_GETATTR_IN = struct.Struct("=I4xQ")
_ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY = struct.Struct("=QQQQII")
ENTRY_SIZE = _ENTRY.size + _ATTRIBUTES.size
_ATTRIBUTES_OUT = struct.Struct("=QII")
_OPEN_OUT = struct.Struct("=QII")
_STATFS_OUT = struct.Struct("=QQQQQIII28x")
_DIRENT = struct.Struct("=QQII")
_FORGET = struct.Struct("=QQ")
_SEEK_IN = struct.Struct("=QQI")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_BLOCK_SIZE = 4096
_NAME_MAX = 255
_BY_HANDLE = 1 << 0

_ASYNC_READ = 1 << 0
_DO_READDIRPLUS = 1 << 13
_READDIRPLUS_AUTO = 1 << 14
_ASYNC_DIO = 1 << 15
_PARALLEL_DIROPS = 1 << 18
_MAX_PAGES_FLAG = 1 << 22
_CACHE_SYMLINKS = 1 << 23
_NO_OPEN_SUPPORT = 1 << 17
_WANTED = (
    _ASYNC_READ
    | _DO_READDIRPLUS
    | _READDIRPLUS_AUTO
    | _ASYNC_DIO
    | _PARALLEL_DIROPS
    | _MAX_PAGES_FLAG
    | _CACHE_SYMLINKS
)


class Opcode(enum.IntEnum):
    """What the kernel asks. The numbers are the kernel's."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = READ
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51


WRITING = frozenset({
    Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME,
    Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE,
    Opcode.RENAME2, Opcode.COPY_FILE_RANGE, Opcode.TMPFILE,
})  # fmt: skip
"""What a read-only file system refuses."""
UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""What the kernel wants no answer to."""


class Request(NamedTuple):
    """One question of the kernel."""

    opcode: int
    unique: int
    """Names the question in its answer."""
    node: int
    body: bytes


class Init(NamedTuple):
    """What the kernel offers when it greets."""

    major: int
    minor: int
    max_readahead: int
    flags: int


unpack_as_read: Callable[[bytearray], tuple[int, int, int, int, int, int]] = _READ_REQUEST.unpack_from
"""Return (opcode, unique, node, handle, offset, size) of a buffer of `REQUEST_SIZE` in one step.

The last three mean something only when the opcode is that of a read.
"""


def parse_request(message: bytearray) -> Request:
    """Split a message; the body is a copy."""
    length, opcode, unique, node, *_ = _HEADER.unpack_from(message)
    return Request(opcode, unique, node, bytes(message[HEADER_SIZE:length]))


def answer(unique: int, size: int, error: int = 0) -> bytes:
    """Return the header of an answer with ``size`` bytes behind it, or of a failure with that errno."""
    return _ANSWER.pack(ANSWER_SIZE + size, -error, unique)


def parse_init(body: bytes) -> Init:
    """Read the kernel's greeting."""
    return Init(*_INIT_IN.unpack_from(body))


def can_read_unopened(offer: Init) -> bool:
    """Tell whether the kernel reads by node, without opening files, once opening one is answered ENOSYS.

    What it then cached of a node it keeps, as with `KEEP_CACHE`; the handle of its requests is 0.
    """
    return bool(offer.flags & _NO_OPEN_SUPPORT)


def init_answer(offer: Init) -> bytes:
    """Return our side of the greeting: what we want of what the kernel offers."""
    return _INIT_OUT.pack(
        MAJOR,
        MINOR,
        offer.max_readahead,
        offer.flags & _WANTED,
        16,
        12,
        MAX_WRITE,
        1,
        MAX_PAGES,
        0,
        0,
    )


def parse_read(body: bytes) -> tuple[int, int, int]:
    """Return (handle, offset, size) of READDIR and READDIRPLUS."""
    handle, offset, size = _READ_IN.unpack_from(body)
    return handle, offset, size


def parse_getattr(body: bytes) -> int | None:
    """Return the handle of the open file that is asked about; None: the node is."""
    flags, handle = _GETATTR_IN.unpack_from(body)
    return int(handle) if flags & _BY_HANDLE else None


def parse_seek(body: bytes) -> tuple[int, int, int]:
    """Return (handle, offset, whence)."""
    handle, offset, whence = _SEEK_IN.unpack_from(body)
    return handle, offset, whence


def parse_u32(body: bytes) -> int:
    """Return the number that a body begins with."""
    return int(_U32.unpack_from(body)[0])


def parse_u64(body: bytes) -> int:
    """Return the number that a body begins with."""
    return int(_U64.unpack_from(body)[0])


def parse_name(body: bytes, start: int = 0) -> bytes:
    """Return the name at ``start``, without the zero byte that ends it."""
    return body[start : body.index(b"\0", start)]


def parse_batch_forget(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield (node, look-ups to forget)."""
    for position in range(parse_u32(body)):
        node, count = _FORGET.unpack_from(body, 8 + position * _FORGET.size)
        yield node, count


def pack_entry(node: int, attributes: Attributes, keep_s: int) -> bytes:
    """Return the answer to a look-up; names and attributes hold for ``keep_s`` seconds."""
    return _ENTRY.pack(node, 0, keep_s, keep_s, 0, 0) + _pack_attributes(attributes)


def pack_attributes(attributes: Attributes, keep_s: int) -> bytes:
    """Return the answer to GETATTR."""
    return _ATTRIBUTES_OUT.pack(keep_s, 0, 0) + _pack_attributes(attributes)


def _pack_attributes(a: Attributes) -> bytes:
    atime, mtime, ctime = (divmod(t, 1_000_000_000) for t in (a.atime_ns, a.mtime_ns, a.ctime_ns))
    blocks = (a.size + 511) // 512 if a.mode & 0o170000 == 0o100000 else 0
    return _ATTRIBUTES.pack(
        a.inode, a.size, blocks, atime[0], mtime[0], ctime[0], atime[1], mtime[1], ctime[1],
        a.mode, a.links & 0xFFFF_FFFF, a.uid & 0xFFFF_FFFF, a.gid & 0xFFFF_FFFF, 0, _BLOCK_SIZE, 0,
    )  # fmt: skip


def pack_open(handle: int, flags: int = 0) -> bytes:
    """Return the answer to OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, flags, 0)


def pack_statfs() -> bytes:
    """Return the answer to STATFS: a full file system with long names."""
    return _STATFS_OUT.pack(0, 0, 0, 0, 0, _BLOCK_SIZE, _NAME_MAX, _BLOCK_SIZE)


def pack_dirent(position: int, name: bytes, attributes: Attributes) -> bytes:
    """Return one entry of READDIR; ``position`` is where the next one begins."""
    head = _DIRENT.pack(attributes.inode, position, len(name), attributes.mode >> 12 & 0o17)
    return head + name + bytes(-len(name) % 8)


def pack_size(size: int) -> bytes:
    """Return the answer to a question for the length of extended attributes."""
    return _U32.pack(size) + bytes(4)


def pack_offset(offset: int) -> bytes:
    """Return the answer to LSEEK."""
    return _U64.pack(offset)
