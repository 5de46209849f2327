"""The NBD client: what a server may say, and what it may not, from the protocol document."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from engine.nbd.content import Described, described
from engine.nbd.uri import NbdUri, parse_uri
from engine.nbd.wire import Status
from engine.sources import open_any
from engine.sources.nbd import NbdSource
from imageformat.errors import (
    AccessDeniedError,
    MountfsError,
    NotFoundError,
    SourceReadError,
    UsageError,
)
from imageformat.extent import Extent, ExtentKind
from support import nbdscript as say
from support.content import noise
from support.nbdscript import OPENED, client_of

CONTENT = noise(1, say.SIZE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nbd://host/disk", NbdUri("disk", host="host")),
        ("nbd://user@host:1/a%20b/c", NbdUri("a b/c", host="host", port=1)),
        ("nbd://[::1]", NbdUri("", host="::1")),
        ("nbd+unix:///?socket=/run/a%2Bb.sock", NbdUri("", socket="/run/a+b.sock")),
        ("nbd+unix:///d%C3%A9?socket=/s&tls-psk=x", NbdUri("dé", socket="/s")),
    ],
)
def test_uri_names_an_export(text: str, expected: NbdUri) -> None:
    assert parse_uri(text) == expected
    assert parse_uri(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("nbds://host/disk", "nbds+unix:///d?socket=/s", "nbd+vsock://1/d", "nbd:///disk", "nbd://h:x/d"),
        *("nbd+unix:///d", "nbd+unix://host/d?socket=/s", "nbd+unix:///d?socket=", "nbd://h/d?socket=/s"),
        *("nbd+unix:///d?socket=/a&socket=/b", f"nbd+unix:///d?socket=/{'a' * 200}", f"nbd://h/{'a' * 5000}"),
        *("nbd://h:99999/d", "nbd://[::1/d", "nbd://h/%ff", "ftp://host/disk"),
    ],
)
def test_uri_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        open_any(text)


def test_server_that_is_not_there_is_an_error_with_its_name(tmp_path: Any) -> None:
    with pytest.raises(NotFoundError, match="no such socket"):
        open_any(f"nbd+unix:///d?socket={tmp_path}/none")
    with pytest.raises(SourceReadError, match="no NBD server answers there"):
        open_any("nbd://127.0.0.1:1/d")


def test_what_a_server_says_is_put_together() -> None:
    half = say.SIZE // 2
    answers = (
        say.status(1, say.BITMAP, (say.SIZE, 1), last=False),
        say.status(1, say.ALLOCATION, (half, 3), (4096, 1), (half, 0)),
        say.data(2, 4096, CONTENT[4096:5000], last=False),
        say.hole(2, 5000, 10, last=False),
        say.data(2, 100, CONTENT[100:4096], last=False),
        say.chunk(2, 0),
    )
    with client_of(*OPENED, *answers) as client:
        source = NbdSource(client)
        assert list(source.extents(0, say.SIZE)) == [
            Extent(0, half, ExtentKind.ZERO),
            Extent(half, half, ExtentKind.DATA),
        ]
        assert source.pread(100, 4910) == CONTENT[100:5000] + bytes(10)


def test_reads_keep_to_the_blocks_of_the_server() -> None:
    opened = (*OPENED[:3], say.export(say.SIZE + 100, (4096, 4096, 8192)))
    answers = [say.data(1, 0, CONTENT[:8192]), say.data(2, 8192, CONTENT[8192:16384])]
    with client_of(*opened, *answers) as client:
        assert client.export.size == say.SIZE  # the rest cannot be asked for
        assert client.read(4000, 9000) == CONTENT[4000:13000]


def test_server_without_structured_replies_is_read() -> None:
    opened = (say.GREETING, say.option(say.STRUCTURED, 1 << 31 | 1), say.export())
    simple = struct.pack(">IIQ", 0x67446698, 0, 1) + CONTENT[:512]
    with client_of(*opened, simple) as client:
        source = NbdSource(client)
        assert list(source.extents(0, 512)) == [Extent(0, 512, ExtentKind.DATA)]
        assert source.pread(0, 512) == CONTENT[:512]


def test_error_of_one_read_leaves_the_next_ones_alone() -> None:
    answers = (say.failure(1, 5, b"medium"), say.data(2, 0, CONTENT[:512]))
    with client_of(*OPENED, *answers) as client:
        with pytest.raises(SourceReadError, match=r"byte 0: input/output error \(medium\)"):
            client.read(0, 512)
        assert client.read(0, 512) == CONTENT[:512]


BAD_READS = {
    "hung up": (say.data(1, 0, CONTENT[:512])[:-1],),
    "no reply": (b"\xff" * 64,),
    "was not asked": (say.data(7, 0, CONTENT[:512]),),
    "left out 12": (say.data(1, 0, CONTENT[:500]),),
    "twice": (say.data(1, 0, CONTENT[:300], last=False), say.data(1, 0, CONTENT[:212])),
    "were not asked": (say.data(1, 256, CONTENT[:512]),),
    "were not asked ": (say.hole(1, (1 << 64) - 1, 512),),
    "4294967295": (say.chunk(1, 1 << 15 | 1, length=(1 << 32) - 1),),
    "were not asked  ": (say.chunk(1, 1, bytes(8), length=(1 << 32) - 1),),
    "makes no sense": (say.chunk(1, 1 << 15 | 1, struct.pack(">IH", 5, 60000)),),
    "empty piece": (say.chunk(1, 0, last=False),) * 3,
    "kind 77": (say.chunk(1, 77),),
    "wrong form": (struct.pack(">IIQ", 0x67446698, 0, 1) + CONTENT[:512],),
    "errors": (say.chunk(1, 1 << 15 | 3, struct.pack(">IH", 5, 0), last=False),) * 40,
}


@pytest.mark.parametrize("reason", BAD_READS)
def test_server_that_answers_wrongly_is_given_up(reason: str) -> None:
    with client_of(*OPENED, *BAD_READS[reason]) as client:
        with pytest.raises(SourceReadError, match=reason.strip()):
            client.read(0, 512)
        with pytest.raises(SourceReadError, match=reason.strip()):
            client.read(512, 512)


BAD_STATUS = {
    "without a length": say.status(1, say.ALLOCATION, (0, 0)),
    "was not asked for": say.status(1, 77, (512, 0)),
    "status of 4 bytes": say.status(1, say.ALLOCATION),
    "status of 7 bytes": say.chunk(1, 5, bytes(7)),
    "status of 4294967295": say.chunk(1, 5, length=(1 << 32) - 1),
    "operation not supported": say.failure(1, 95),
}


@pytest.mark.parametrize("reason", BAD_STATUS)
def test_block_status_that_makes_no_sense_is_an_error(reason: str) -> None:
    with client_of(*OPENED, BAD_STATUS[reason]) as client, pytest.raises(SourceReadError, match=reason):
        list(NbdSource(client).extents(0, say.SIZE))


BAD_OPENINGS: dict[str, tuple[tuple[bytes, ...], type[MountfsError]]] = {
    "does not speak NBD": ((b"SSH-2.0-OpenSSH_9.2\r\n",), SourceReadError),
    "before 2012": ((b"NBDMAGIC" + struct.pack(">QQ", 0x420281861253, 1 << 20),), SourceReadError),
    "before 2012 ": ((b"NBDMAGICIHAVEOPT\0\0",), SourceReadError),
    "hung up": ((say.GREETING[:9],), SourceReadError),
    "not asked": ((say.GREETING, say.option(77, say.ACK)), SourceReadError),
    "sent 4294967295 bytes": (
        (say.GREETING, struct.pack(">QIII", 0x3E889045565A9, say.STRUCTURED, 1, (1 << 32) - 1)),
        SourceReadError,
    ),
    "does not end": ((say.GREETING, say.option(say.STRUCTURED, say.INFO, bytes(4)) * 300), SourceReadError),
    "no export of that name": ((*OPENED[:3], say.option(say.GO, 1 << 31 | 6, b"no disk")), NotFoundError),
    "ssh -L": ((*OPENED[:3], say.option(say.GO, 1 << 31 | 5)), UsageError),
    "refuses this client": ((*OPENED[:3], say.option(say.GO, 1 << 31 | 2)), AccessDeniedError),
    "refuses the export": ((*OPENED[:3], say.option(say.GO, 1 << 31 | 7)), SourceReadError),
    "disk of 0 bytes": ((*OPENED[:3], say.export(0)), SourceReadError),
    f"disk of {1 << 63} bytes": ((*OPENED[:3], say.export(1 << 63)), SourceReadError),
    "another length": ((*OPENED[:3], say.option(say.GO, say.INFO, bytes(5))), SourceReadError),
    "requests of 3": ((*OPENED[:3], say.export(blocks=(3, 4096, 8192))), SourceReadError),
    "requests of 0": ((*OPENED[:3], say.export(blocks=(0, 4096, 8192))), SourceReadError),
    "requests of 4096 to 512": ((*OPENED[:3], say.export(blocks=(4096, 4096, 512))), SourceReadError),
}


@pytest.mark.parametrize("reason", BAD_OPENINGS)
def test_export_that_cannot_be_had_is_an_error_that_says_why(reason: str) -> None:
    said, kind = BAD_OPENINGS[reason]
    with pytest.raises(kind, match=reason.strip()), client_of(*said):
        pass


@pytest.mark.parametrize("said", [(), (say.GREETING,), OPENED], ids=["greeting", "option", "read"])
def test_server_that_falls_silent_does_not_hang_us(said: tuple[bytes, ...]) -> None:
    with (
        pytest.raises(SourceReadError, match="did not answer in time"),
        client_of(*said, hang_up=False, timeout=0.05) as client,
    ):
        client.read(0, 512)


def test_walk_over_a_disk_described_in_crumbs_ends() -> None:
    asked = 0

    def crumbs(_offset: int, _size: int) -> dict[int, tuple[Status, ...]]:
        nonlocal asked
        asked += 1
        return {1: (Status(1, 0),)}

    fake: Any = SimpleNamespace(export=SimpleNamespace(contexts={"b": 1}, min_block=1), status=crumbs)
    last = Described(0, 0, 0)
    for piece in described(fake, "b", 0, 1 << 20):
        last = piece
    assert last.flags is None
    assert last.offset + last.length == 1 << 20
    assert asked < 2000
