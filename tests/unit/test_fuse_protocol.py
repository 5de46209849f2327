"""The kernel's messages, byte for byte, and the numbers under which it knows places."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mountfs import fuseprotocol as fuse
from mountfs.foldertree import Entry, FolderTree
from mountfs.fuseloop import FuseLoop
from mountfs.fusenodes import NodeTable
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.posixview import Attributes, PosixView
from mountfs.tree import FileTree


def request(opcode: int, node: int, body: bytes, unique: int = 7) -> bytes:
    head = struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, node, 0, 0, 0, 0)
    return head + body


@contextmanager
def served(tree: FileTree) -> Iterator[tuple[socket.socket, FuseLoop]]:
    """Our end of a socket that the loop takes for the device: one message, one packet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = FuseLoop(theirs.detach(), PosixView(tree), lambda: None)
    loop.start()
    with ours:
        ours.settimeout(20)
        yield ours, loop
    loop.close(20)


@pytest.fixture
def kernel() -> Iterator[socket.socket]:
    tree = MemoryTree(folder({b"file": Item(b"content"), b"folder": folder({b"x": Item(b"")})}))
    with served(tree) as (ours, _):
        yield ours


def ask(kernel: socket.socket, opcode: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
    """Ask the loop; its errno and what came behind the header."""
    kernel.send(request(opcode, node, body))
    answer = kernel.recv(1 << 20)
    length, error, unique = struct.unpack_from("=IiQ", answer)
    assert (length, unique) == (len(answer), 7)
    return -error, answer[16:]


def test_the_greeting_has_the_size_and_the_limits_that_the_kernel_wants(kernel: socket.socket) -> None:
    offer = struct.pack("=IIII", 7, 45, 131072, 0xFFFF_FFFF)
    error, answer = ask(kernel, 26, body=offer + bytes(48))
    assert (error, len(answer)) == (0, 64)
    major, minor, ahead, flags, background, _, max_write, grain, pages = struct.unpack_from(
        "=IIIIHHIIH", answer
    )
    assert (major, minor, ahead, max_write, grain, pages) == (7, 31, 131072, 4096, 1, 256)
    assert background > 0
    assert flags & 1 << 22, "without it the kernel asks for 128 KiB at most"
    assert not flags & 1 << 16, "write-back caching has no place in what is never written"
    assert ask(kernel, 26, body=struct.pack("=IIII", 7, 10, 0, 0))[0] == errno.EPROTO


def test_what_is_not_understood_or_not_allowed_is_refused_and_nothing_breaks(kernel: socket.socket) -> None:
    for opcode in range(3, 200):
        if opcode in {5, 14, 15, 17, 18, 22, 23, 26, 27, 28, 29, 36, 42, 44, 46, 3}:
            continue
        error, answer = ask(kernel, opcode, body=bytes(64))
        assert error in ({errno.EROFS} if opcode in fuse.WRITING else {errno.ENOSYS}), opcode
        assert answer == b""
    assert ask(kernel, 17)[0] == 0


@pytest.mark.parametrize("opcode", [1, 14, 15, 18, 22, 23, 27, 28, 29, 44, 46])
@pytest.mark.parametrize("body", [b"", b"\xff" * 8, b"\xff" * 64])
def test_a_request_that_makes_no_sense_gets_an_errno(kernel: socket.socket, opcode: int, body: bytes) -> None:
    ask(kernel, opcode, node=99, body=body)
    assert ask(kernel, 17)[0] == 0, "it still answers"


def test_look_up_open_read(kernel: socket.socket) -> None:
    error, entry = ask(kernel, 1, body=b"file\0")
    assert (error, len(entry)) == (0, 128)
    node, generation, valid = struct.unpack_from("=QQQ", entry)
    assert (generation, valid) == (0, 3600)
    (size,) = struct.unpack_from("=Q", entry, 48)
    assert size == 7
    error, opened = ask(kernel, 14, node, struct.pack("=II", os.O_RDONLY, 0))
    handle, flags = struct.unpack_from("=QI", opened)
    assert (error, len(opened), flags) == (0, 16, 2)
    read = struct.pack("=QQIIQII", handle, 3, 100, 0, 0, 0, 0)
    assert ask(kernel, 15, node, read) == (0, b"tent")
    assert ask(kernel, 14, node, struct.pack("=II", os.O_RDWR, 0))[0] == errno.EROFS
    assert ask(kernel, 1, body=b"absent\0")[0] == errno.ENOENT
    by_handle = struct.pack("=IIQ", 1, 0, handle)
    error, attributes = ask(kernel, 3, node=99, body=by_handle)
    assert (error, struct.unpack_from("=QQ", attributes, 24)) == (0, (7, 1)), (
        "size and blocks of the open file"
    )
    assert ask(kernel, 3, node=99, body=bytes(16))[0] == errno.ESTALE
    assert ask(kernel, 15, node, struct.pack("=QQIIQII", 1234, 0, 1, 0, 0, 0, 0))[0] == errno.EIO


def test_a_kernel_that_can_reads_without_opening(kernel: socket.socket) -> None:
    """It asks once whether files need opening; from then on a read names the node, and the handle is 0."""
    ask(kernel, 26, body=struct.pack("=IIII", 7, 45, 131072, 1 << 17) + bytes(48))
    (node,) = struct.unpack_from("=Q", ask(kernel, 1, body=b"file\0")[1])
    assert ask(kernel, 14, node, bytes(8))[0] == errno.ENOSYS
    for start, expected in ((0, b"content"), (3, b"tent"), (99, b"")):
        read = struct.pack("=QQIIQII", 0, start, 100, 0, 0, 0, 0)
        assert ask(kernel, 15, node, read) == (0, expected)
    error, attributes = ask(kernel, 3, node, struct.pack("=IIQ", 1, 0, 0))
    assert (error, struct.unpack_from("=QQ", attributes, 24)) == (0, (7, 1))
    assert ask(kernel, 46, node, struct.pack("=QQII", 0, 2, 4, 0)) == (0, struct.pack("=Q", 7)), "SEEK_HOLE"
    folder_node = struct.unpack_from("=Q", ask(kernel, 1, body=b"folder\0")[1])[0]
    read = struct.pack("=QQIIQII", 0, 0, 100, 0, 0, 0, 0)
    assert ask(kernel, 15, folder_node, read)[0] == errno.EISDIR
    assert ask(kernel, 15, 99, read)[0] == errno.ESTALE
    assert ask(kernel, 27, body=bytes(8))[0] == 0, "folders are opened: not all of them may be remembered"


def test_files_that_are_read_unopened_are_remembered_and_not_for_ever() -> None:
    names = [b"%04d" % number for number in range(1500)]
    with served(MemoryTree(folder({name: Item(name) for name in names}))) as (kernel, loop):
        ask(kernel, 26, body=struct.pack("=IIII", 7, 45, 131072, 1 << 17) + bytes(48))
        nodes = [struct.unpack_from("=Q", ask(kernel, 1, body=name + b"\0")[1])[0] for name in names]
        read = struct.pack("=QQIIQII", 0, 0, 100, 0, 0, 0, 0)
        for _ in range(2):
            assert [ask(kernel, 15, node, read) for node in nodes] == [(0, name) for name in names]
        assert len(loop._files) <= 1025


def test_the_kernel_may_remember_the_listing_of_what_never_changes(kernel: socket.socket) -> None:
    _, opened = ask(kernel, 27, body=struct.pack("=II", 0, 0))
    assert struct.unpack_from("=QI", opened)[1] == fuse.CACHE_FOLDER | fuse.KEEP_CACHE == 0b1010
    points = FolderTree(lambda: {b"point": Entry(open=lambda: MemoryTree(folder({b"x": Item(b"")})))})
    with served(points) as (changing, _):
        assert struct.unpack_from("=QI", ask(changing, 27, body=bytes(8))[1])[1] == 0
        (node,) = struct.unpack_from("=Q", ask(changing, 1, body=b"point\0")[1])
        assert struct.unpack_from("=QI", ask(changing, 27, node, bytes(8))[1])[1] == 0


def test_nothing_is_read_once_it_is_to_end() -> None:
    with served(MemoryTree(folder({b"file": Item(b"content")}))) as (kernel, loop):
        (node,) = struct.unpack_from("=Q", ask(kernel, 1, body=b"file\0")[1])
        (handle,) = struct.unpack_from("=Q", ask(kernel, 14, node, bytes(8))[1])
        read = struct.pack("=QQIIQII", handle, 0, 100, 0, 0, 0, 0)
        assert ask(kernel, 15, node, read) == (0, b"content")
        loop.stop()
        assert ask(kernel, 15, node, read)[0] == errno.EIO
        assert ask(kernel, 1, body=b"file\0")[0] == errno.EIO


def test_the_descriptor_outlives_a_read_that_hangs() -> None:
    """Its number would be that of another file otherwise, and the answer would be written into that."""
    reading, proceed = threading.Event(), threading.Event()

    def slow(_offset: int, size: int) -> bytes:
        reading.set()
        proceed.wait(20)
        return bytes(size)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = theirs.detach()
    loop = FuseLoop(
        descriptor, PosixView(MemoryTree(folder({b"file": Item(size=4, read=slow)}))), lambda: None
    )
    loop.start()
    with ours:
        (node,) = struct.unpack_from("=Q", ask(ours, 1, body=b"file\0")[1])
        (handle,) = struct.unpack_from("=Q", ask(ours, 14, node, bytes(8))[1])
        ours.send(request(15, node, struct.pack("=QQIIQII", handle, 0, 4, 0, 0, 0, 0)))
        assert reading.wait(20)
        assert ask(ours, 17)[0] == 0, "the other thread still answers"
        ours.shutdown(socket.SHUT_WR)
        loop.close(0.01)
        os.fstat(descriptor)
        proceed.set()
        assert ours.recv(100)[16:] == bytes(4)
        loop.close(20)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(descriptor)


def test_a_listing_with_attributes_counts_as_looking_up(kernel: socket.socket) -> None:
    _, opened = ask(kernel, 27, body=struct.pack("=II", 0, 0))
    (handle,) = struct.unpack_from("=Q", opened)
    error, listing = ask(kernel, 44, body=struct.pack("=QQIIQII", handle, 0, 65536, 0, 0, 0, 0))
    assert error == 0
    names, at = {}, 0
    while at < len(listing):
        (node,) = struct.unpack_from("=Q", listing, at)
        _, _, length, _ = struct.unpack_from("=QQII", listing, at + 128)
        names[listing[at + 152 : at + 152 + length]] = node
        at += 152 + -(-length // 8) * 8
    assert set(names) == {b".", b"..", b"file", b"folder"}
    assert names[b"."] == names[b".."] == 0
    assert ask(kernel, 3, names[b"folder"], bytes(16))[0] == 0
    assert ask(kernel, 1, names[b"folder"], b"x\0")[0] == 0


ORDINARY = Attributes(0o100644, 5, 1, 0, 0, 3, 0, 0, 0, None)


def test_numbers_are_forgotten_when_the_kernel_says_so() -> None:
    table = NodeTable(lambda _: ORDINARY)
    first = table.enter(1, b"a", b"/a", None)
    assert table.enter(1, b"a", b"/a", None) == first
    assert table.path(first) == b"/a"
    table.forget(first, 1)
    assert table.path(first) == b"/a"
    table.forget(first, 1)
    assert len(table) == 1
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        table.path(first)
    assert table.enter(1, b"a", b"/a", None) != first
    table.forget(1, 1000)
    assert table.path(1) == b"/"
    table.forget(12345, 1)


def test_what_replaces_a_volatile_place_has_numbers_of_its_own() -> None:
    now = {b"/": None, b"/latest": b"one"}

    def attributes(path: bytes) -> Attributes:
        return ORDINARY._replace(volatile=now[path])

    table = NodeTable(attributes)
    old = table.enter(1, b"latest", b"/latest", b"one")
    inside = table.enter(old, b"x", b"/latest/x", None)
    assert table.path(inside) == b"/latest/x"
    now[b"/latest"] = b"two"
    for node in (old, inside):
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            table.path(node)
    new = table.enter(1, b"latest", b"/latest", b"two")
    assert new != old
    assert table.enter(new, b"x", b"/latest/x", None) != inside
    table.forget(old, 1)
    assert table.path(new) == b"/latest", "forgetting the old one does not take the new one away"


def test_a_directory_entry_is_padded_to_eight_bytes() -> None:
    for length in range(1, 20):
        entry = fuse.pack_dirent(9, b"n" * length, ORDINARY)
        assert len(entry) % 8 == 0
        assert struct.unpack_from("=QQII", entry) == (5, 9, length, 8)
        assert entry[24 : 24 + length] == b"n" * length
