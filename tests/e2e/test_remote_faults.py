"""What networks and bad S3 servers do, done by a proxy before a real one: a clear error, or all is right."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

from imageformat.errors import (
    AccessDeniedError,
    CredentialsError,
    DestinationError,
    MountfsError,
    NotFoundError,
    StorageError,
)
from imageformat.storage import leases
from imageformat.storage.patience import Patience
from imageformat.storage.s3 import S3Storage
from support import s3
from support.content import noise
from support.faultproxy import Answer, Fault, Proxy, Request, proxy_before, refusal

KIB = 1 << 10
PATIENCE = Patience(attempts=4, first_delay=0.001, longest_delay=0.01, connect=2, answer=3)
CONTENT = noise(3, 300 * KIB + 17)


@pytest.fixture(scope="module")
def only_proxy() -> Iterator[Proxy]:
    with proxy_before(s3.bucket().port) as found:
        yield found


@pytest.fixture
def proxy(only_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    s3.use(monkeypatch, only_proxy.endpoint)
    only_proxy.faults.clear()
    only_proxy.seen.clear()
    return only_proxy


@pytest.fixture
def storage(proxy: Proxy) -> Iterator[S3Storage]:
    with contextlib.closing(S3Storage(s3.BUCKET, uuid4().hex, patience=PATIENCE)) as opened:
        yield opened


def put(storage: S3Storage, key: str, content: bytes, *, checked: bool = True) -> None:
    writer = storage.create(key)
    try:
        writer.append(content)
        writer.commit((lambda device: check(device.pread(0, device.size), content)) if checked else None)
    finally:
        writer.abort()


def check(found: bytes, content: bytes) -> None:
    if found != content:
        raise StorageError("is not what was written")


def read(storage: S3Storage, key: str = "set/one") -> bytes:
    with contextlib.closing(storage.open(key)) as device:
        return device.pread(0, device.size)


def names(storage: S3Storage) -> list[str]:
    return [entry.key for entry in storage.objects("set/")]


def is_read(request: Request) -> bool:
    return request.is_read


def is_part(request: Request) -> bool:
    return request.method == "PUT" and "partNumber" in request.query


def is_complete(request: Request) -> bool:
    return request.method == "POST" and "uploadId" in request.query


def is_put(request: Request) -> bool:
    return request.method == "PUT" and request.path.endswith("/set/one")


def everything(_request: Request) -> bool:
    return True


def whole(request: Request) -> Answer:
    """What a server answers that does not know ranges."""
    key = request.path.partition(f"/{s3.BUCKET}/")[2]
    answer = s3.bucket().client.get_object(Bucket=s3.BUCKET, Key=key)
    return Answer(200, {"ETag": answer["ETag"]}, answer["Body"].read())


def other_range(answer: Answer) -> Answer:
    told = answer.headers["Content-Range"]
    first, last = map(int, re.findall(r"(\d+)-(\d+)", told)[0])
    return replace(answer, headers={**answer.headers, "Content-Range": f"bytes {first + 1}-{last + 1}/999"})


def shorter(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[: len(answer.body) // 3])


READS_THAT_GO_ON = {
    "a cut body": Fault(is_read, cut_at=lambda size: size // 2, times=3),
    "a body cut at once": Fault(is_read, cut_at=lambda _size: 0, times=3),
    "a short body": Fault(is_read, after=shorter, times=2),
    "no answer": Fault(is_read, after=lambda _answer: None, times=3),
    "500": Fault(is_read, refusal(500, "InternalError"), times=3),
    "503": Fault(everything, refusal(503, "SlowDown"), times=3),
    "429": Fault(is_read, refusal(429, "TooManyRequests"), times=3),
}


@pytest.mark.parametrize("name", READS_THAT_GO_ON)
def test_reading_goes_on(proxy: Proxy, storage: S3Storage, name: str) -> None:
    put(storage, "set/one", CONTENT)
    fault = replace(READS_THAT_GO_ON[name], happened=0)
    proxy.faults.append(fault)
    assert read(storage) == CONTENT
    assert fault.happened == fault.times


@pytest.mark.parametrize(
    ("fault", "kind", "words", "tries"),
    [
        (Fault(is_read, whole, times=99), StorageError, "with the whole object", 1),
        (Fault(is_read, after=other_range, times=99), StorageError, "another range", 1),
        (Fault(is_read, refusal(500, "InternalError"), times=99), StorageError, "given up after 4", 4),
        (Fault(is_read, cut_at=lambda _size: 9, times=99), StorageError, "given up after 4", 4),
        (Fault(is_read, refusal(403, "AccessDenied"), times=99), AccessDeniedError, "AccessDenied", 1),
        (Fault(is_read, refusal(404, "NoSuchKey"), times=99), NotFoundError, "NoSuchKey", 1),
        (Fault(is_read, refusal(400, "ExpiredToken"), times=99), CredentialsError, "ExpiredToken", 1),
        (Fault(everything, refusal(400, "ExpiredToken"), times=99), CredentialsError, "ExpiredToken", 3),
        (Fault(is_read, refusal(412, "PreconditionFailed"), times=99), StorageError, "was replaced", 1),
    ],
    ids=["200", "range", "500", "cut", "403", "404", "expired", "expired at once", "replaced"],
)
def test_reading_ends_with_a_clear_error(
    proxy: Proxy, storage: S3Storage, fault: Fault, kind: type[MountfsError], words: str, tries: int
) -> None:
    put(storage, "set/one", CONTENT[: 100 * KIB])
    fault = replace(fault, happened=0)
    proxy.faults.append(fault)
    with pytest.raises(kind, match=words) as caught, contextlib.closing(storage.open("set/one")) as device:
        device.pread(1000, 60_000)
    assert type(caught.value) is kind
    assert fault.happened == tries, "what is hopeless is not tried again"


def test_a_server_that_is_silent_is_given_up(proxy: Proxy, storage: S3Storage) -> None:
    put(storage, "set/one", b"x" * 100_000)
    proxy.faults.append(Fault(is_read, after=lambda _answer: None, times=99))
    with pytest.raises(StorageError, match="given up"):
        read(storage)


def test_an_object_that_is_replaced_while_it_is_open_never_gives_other_bytes(
    proxy: Proxy, storage: S3Storage
) -> None:
    put(storage, "set/one", CONTENT[: 100 * KIB])
    with contextlib.closing(storage.open("set/one")) as device:
        assert device.pread(0, 100) == CONTENT[:100]
        s3.bucket().put(storage.full_key("set/one"), CONTENT[100 * KIB : 200 * KIB])
        with pytest.raises(StorageError, match="was replaced"):
            device.pread(50_000, 50_000)


def small(content: bytes) -> bytes:
    return content[: 100 * KIB]


WRITES_THAT_GO_ON = {
    "a part cut off": (Fault(is_part, after=lambda _answer: None, times=3), 3),
    "a part refused": (Fault(is_part, refusal(503, "SlowDown"), times=3), 3),
    "a part damaged on the way": (
        Fault(is_part, lambda request: setattr(request, "body", request.body[::-1]), times=2), 3
    ),
    "completion unanswered": (Fault(is_complete, after=lambda _answer: None), 3),
    "completion refused": (Fault(is_complete, refusal(500, "InternalError"), times=2), 3),
    "an object unanswered": (Fault(is_put, after=lambda _answer: None), 1),
    "an object refused": (Fault(is_put, refusal(500, "InternalError"), times=3), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES_THAT_GO_ON)
def test_writing_goes_on(
    proxy: Proxy, storage: S3Storage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("imageformat.storage._s3writer._PART_SIZES", ((10, 128 * KIB),))
    fault, parts = WRITES_THAT_GO_ON[name]
    fault = replace(fault, happened=0)
    proxy.faults.append(fault)
    content = CONTENT if parts > 1 else small(CONTENT)
    with storage.exclusive("set/"):
        put(storage, "set/one", content)
    assert fault.happened == fault.times
    assert read(storage) == content
    nothing_is_left(storage, ["set/.lock", "set/one"])


def nothing_is_left(storage: S3Storage, keys: list[str]) -> None:
    full = storage.full_key("set/")
    assert [key.removeprefix(full[:-4]) for key in s3.bucket().keys(full)] == keys
    assert s3.bucket().uploads(full) == []


def without_the_last_part(request: Request) -> Answer:
    """The server completes what it has, which is less than it acknowledged."""
    key, query = request.path.partition(f"/{s3.BUCKET}/")[2].partition("?")[0], request.query
    etags = [etag.decode() for etag in re.findall(rb"<ETag>(.*?)</ETag>", request.body, re.DOTALL)]
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags[:-1], 1)]
    s3.bucket().client.complete_multipart_upload(
        Bucket=s3.BUCKET, Key=key, UploadId=query["uploadId"][0], MultipartUpload={"Parts": parts}
    )
    return Answer(200, {}, b"<CompleteMultipartUploadResult/>")


def swapped(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[::-1])


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault(is_part, refusal(403, "AccessDenied"), times=99), AccessDeniedError, "AccessDenied"),
        (Fault(is_part, refusal(400, "ExpiredToken"), times=99), CredentialsError, "ExpiredToken"),
        (Fault(is_part, refusal(500, "InternalError"), times=99), DestinationError, "given up"),
        (Fault(is_part, refusal(403, "QuotaExceeded"), times=99), DestinationError, "no space|Quota"),
        (Fault(is_complete, without_the_last_part, times=99), DestinationError, "kept"),
        (Fault(is_complete, refusal(404, "NoSuchUpload"), times=99), DestinationError, "has lost"),
        (Fault(is_read, after=swapped, times=99), StorageError, "is not what was written"),
    ],
    ids=["403", "expired", "500", "quota", "dropped part", "lost", "read back"],
)
def test_a_write_that_fails_leaves_nothing(
    proxy: Proxy,
    storage: S3Storage,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    kind: type[MountfsError],
    words: str,
) -> None:
    monkeypatch.setattr("imageformat.storage._s3writer._PART_SIZES", ((10, 128 * KIB),))
    proxy.faults.append(replace(fault, happened=0))
    with storage.exclusive("set/"):
        with pytest.raises(kind, match=words):
            put(storage, "set/one", CONTENT)
        proxy.faults.clear()
        assert names(storage) == []
    nothing_is_left(storage, ["set/.lock"])


def test_what_a_failing_server_took_is_gone_on_with(
    proxy: Proxy, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imageformat.storage._s3writer._PART_SIZES", ((10, 128 * KIB),))
    with storage.exclusive("set/"):
        writer = storage.go_on("set/one", "ab" * 16)
        proxy.faults.append(Fault(is_part, refusal(500, "InternalError"), times=99, skip=1))
        writer.append(CONTENT)
        with pytest.raises(DestinationError, match="given up"):
            writer.commit()
        assert writer.suspend()
        writer.abort()
        proxy.faults.clear()
        assert names(storage) == []
        before = len([request for request in proxy.seen if is_part(request)])
        again = storage.go_on("set/one", "ab" * 16)
        again.append(CONTENT)
        again.commit(lambda device: check(device.pread(0, device.size), CONTENT))
        again.abort()
    parts = [len(request.body) for request in proxy.seen if is_part(request)][before:]
    assert len(parts) == 2, "one of three was there"
    assert again.reused + sum(parts) == len(CONTENT)
    assert read(storage) == CONTENT
    nothing_is_left(storage, ["set/.lock", "set/one"])


def test_a_server_that_keeps_less_than_it_acknowledges(
    proxy: Proxy, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the object is right, and a part of it is not what was sent: only reading back tells."""
    monkeypatch.setattr("imageformat.storage._s3writer._PART_SIZES", ((10, 128 * KIB),))
    sent = s3.bucket().client

    def exchange(request: Request) -> Answer:
        key = storage.full_key("set/one")
        query = {name: values[0] for name, values in request.query.items()}
        answer = sent.upload_part(
            Bucket=s3.BUCKET, Key=key, UploadId=query["uploadId"], PartNumber=1, Body=bytes(128 * KIB)
        )
        return Answer(200, {"ETag": answer["ETag"]}, b"")

    proxy.faults.append(
        Fault(lambda request: is_part(request) and request.query["partNumber"] == ["1"], exchange)
    )
    with storage.exclusive("set/"), pytest.raises(StorageError, match="is not what was written"):
        put(storage, "set/one", CONTENT)
    nothing_is_left(storage, ["set/.lock"])


def test_a_server_without_conditional_writes_replaces_nothing(proxy: Proxy, storage: S3Storage) -> None:
    """Swift says that it has none; what is there is seen before and after."""
    assert any("If-None-Match" in request.headers for request in proxy.seen) is False
    writer = storage.create("set/one")
    writer.append(b"mine")
    s3.bucket().put(storage.full_key("set/one"), b"theirs")
    with pytest.raises(DestinationError, match="exists already"):
        writer.commit(lambda _device: None)
    writer.abort()
    assert read(storage) == b"theirs"


def test_the_condition_is_asked_for_and_believed(proxy: Proxy, storage: S3Storage) -> None:
    """A server that has conditional writes: another's object came between our look and our write."""
    proxy.faults.append(
        Fault(
            lambda request: is_put(request) and "If-None-Match" in request.headers,
            refusal(412, "PreconditionFailed"),
        )
    )
    writer = storage.create("set/one")
    writer.append(b"mine")
    with pytest.raises(DestinationError, match="exists already"):
        writer.commit(lambda _device: None)
    assert names(storage) == []


def test_what_a_killed_writer_published_unproven_is_hidden_and_removed(storage: S3Storage) -> None:
    bucket, full = s3.bucket(), storage.full_key("set/one")
    bucket.client.put_object(Bucket=s3.BUCKET, Key=full, Body=b"unproven", Metadata={"mountfs-writer": "w1"})
    bucket.put(storage.full_key("set/.one.pending"), b"w1")
    bucket.put(storage.full_key("set/two"), b"proven, and a note that outlived it by a fault")
    bucket.put(storage.full_key("set/.two.pending"), b"w2")
    assert names(storage) == []
    with pytest.raises(NotFoundError):
        storage.open("set/one")
    with storage.exclusive("set/"):
        assert names(storage) == ["set/two"], "what another wrote is not removed"
    nothing_is_left(storage, ["set/.lock", "set/two"])


def test_a_writer_that_was_cut_off_publishes_nothing(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept, its lease expired, and another took over."""
    now = [0.0]
    monkeypatch.setattr(leases, "_uptime", lambda: now[0])
    with storage.exclusive("set/"):
        writer = storage.create("set/one")
        writer.append(b"late")
        now[0] += leases.LIFETIME_S
        for key in s3.bucket().keys(storage.full_key("set/.lease-")):
            s3.bucket().client.delete_object(Bucket=s3.BUCKET, Key=key)
        with pytest.raises(DestinationError, match="cut off"):
            writer.commit()
        writer.abort()
        assert names(storage) == []


def test_secrets_are_in_no_message(proxy: Proxy, storage: S3Storage) -> None:
    proxy.faults.append(Fault(everything, refusal(403, "SignatureDoesNotMatch"), times=99))
    with pytest.raises(CredentialsError) as caught:
        read(storage)
    assert (
        s3.SECRET
        not in f"{caught.value} {caught.value.__notes__ if hasattr(caught.value, '__notes__') else ''}"
    )
