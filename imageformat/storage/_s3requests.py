"""The requests that an S3 server is asked, each with its failures in our words.

Everything goes through botocore, which signs, finds credentials and knows profiles; its own retries are off,
because those end where the body of an answer begins. Sources: Amazon S3 API Reference, operations as named;
RFC 9110 sections 13 and 14 for conditions and ranges.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from urllib3.exceptions import HTTPError

from imageformat.errors import (
    AccessDeniedError,
    CredentialsError,
    DestinationError,
    DestinationFullError,
    MountfsError,
    NotFoundError,
    StorageError,
    UsageError,
)
from imageformat.storage.patience import PassingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.storage.patience import Patience


class _UnknownRequestError(Exception):
    """The server does not know this request: most often a condition of a write."""


_CREDENTIAL_CODES = frozenset(
    {
        "AuthorizationHeaderMalformed", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId",
        "InvalidSecurity", "InvalidToken", "NotSignedUp", "RequestExpired", "RequestTimeTooSkewed",
        "SignatureDoesNotMatch", "TokenRefreshRequired",
    }
)  # fmt: skip
_BUSY_CODES = frozenset(
    {
        "BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout",
        "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    }
)  # fmt: skip
_FULL_CODES = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "InsufficientCapacity"})
_ANSWERS: Mapping[str, type[MountfsError]] = {
    "NoSuchBucket": NotFoundError,
    **dict.fromkeys(_CREDENTIAL_CODES, CredentialsError),
    **dict.fromkeys(_FULL_CODES, DestinationFullError),
}
_STATUSES: Mapping[int, type[MountfsError]] = {
    401: CredentialsError,
    403: AccessDeniedError,
    404: NotFoundError,
    507: DestinationFullError,
}
NOTHING: Mapping[str, object] = {}
_CONDITION = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412"})
_BROKEN = (BotoConnectionError, HTTPClientError, IncompleteReadError, HTTPError, OSError)
"""A connection that was not made, or ended before the answer did."""
_OF_BUCKETS = frozenset({"list_objects_v2", "list_multipart_uploads"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_WRITER = "mountfs-writer"
_CHUNK = 1 << 20
_PROGRESS = 64 << 10
"""An answer that brought less before it broke counts as a failure, so that there is an end."""


def md5_tag(content: bytes) -> str:
    """Return the entity tag of a part, as most servers make it."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class ExistsAlreadyError(Exception):
    """The condition of a write was not met: there is an object of that name."""


class Stored(NamedTuple):
    """An object as the server describes it."""

    key: str
    size: int
    etag: str
    modified_ns: int
    writer: str = ""
    """Which writer of ours made it; known from `Bucket.head` only."""


@cache
def s3_client(profile: str, patience: Patience) -> Any:  # noqa: ANN401 (botocore makes its classes at run time)
    """Return the client of a profile (empty: of the environment), shared by all threads.

    Raises:
        UsageError: there is no such profile, or its settings make no sense.
    """
    try:
        session = botocore.session.Session(profile=profile or None)
        region = session.get_config_variable("region") or "us-east-1"
        client = session.create_client("s3", region_name=region, config=_config(patience))
        if "amazonaws.com" in client.meta.endpoint_url:
            return client
        styles = _config(patience).merge(Config(s3={"addressing_style": "path"}))
        return session.create_client("s3", region_name=region, config=styles)
    except ProfileNotFound as error:
        raise UsageError(f"there is no profile '{profile}' in the AWS configuration") from error
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"the settings of S3 cannot be used: {error}") from error


def _config(patience: Patience) -> Config:
    return Config(
        connect_timeout=patience.connect,
        read_timeout=patience.answer,
        max_pool_connections=16,
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",  # what older servers do not know; we send Content-MD5
        response_checksum_validation="when_required",
    )


class Bucket:
    """The operations on one bucket. Any number of threads may call it at once.

    Raises:
        NotFoundError, AccessDeniedError, CredentialsError; StorageError when reading; DestinationError and
        DestinationFullError when writing.
    """

    def __init__(self, name: str, profile: str, patience: Patience) -> None:
        self._name = name
        self._patience = patience
        self._client = s3_client(profile, patience)
        self._conditional = True
        """False once the server has said that it knows no conditional writes."""
        self._reached = False

    def head(self, key: str) -> Stored | None:
        """Return what is stored under a key; None when nothing is."""
        try:
            answer = self._call("head_object", key)
        except NotFoundError:
            return None
        except (AccessDeniedError, StorageError):
            self._call("list_objects_v2", key, {"Prefix": key, "MaxKeys": 1})  # HEAD does not tell the reason
            raise
        writer = {name.lower(): text for name, text in answer.get("Metadata", {}).items()}.get(_WRITER, "")
        return Stored(key, answer["ContentLength"], answer["ETag"], _ns(answer["LastModified"]), writer)

    def entries(self, prefix: str) -> Iterator[Stored | str]:
        """Yield the objects directly below a prefix, and the prefixes of its folders."""
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", prefix, {"Prefix": prefix, "Delimiter": "/", **token})
            for entry in page.get("CommonPrefixes", ()):
                yield str(entry["Prefix"])
            for entry in page.get("Contents", ()):
                yield Stored(entry["Key"], entry["Size"], entry["ETag"], _ns(entry["LastModified"]))
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or following in {None, token.get("ContinuationToken")}:
                return
            token = {"ContinuationToken": following}

    def read(self, key: str, offset: int, size: int, of: Stored) -> bytes:
        """Return a range of an object that must still be the one described; goes on where an answer broke."""
        found = bytearray()
        failures = 0
        while len(found) < size:
            before = len(found)
            try:
                self._read_some(key, offset, size, of, found)
                if len(found) < size:
                    raise PassingError from EOFError("the answer was too short")
            except PassingError as error:
                failures = 1 if len(found) - before >= _PROGRESS else failures + 1
                if failures >= self._patience.attempts:
                    raise self._given_up(key, error, writing=False) from error
                time.sleep(self._patience.delay(failures))
        return bytes(found)

    def _read_some(self, key: str, offset: int, size: int, of: Stored, found: bytearray) -> None:
        start, end = offset + len(found), offset + size
        with self._said(key, writing=False):
            try:
                answer = self._client.get_object(
                    Bucket=self._name, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=of.etag
                )
            except ClientError as error:
                if _code(error) in _CONDITION or _status(error) == 416:
                    raise StorageError(
                        f"{self._place(key)}: was replaced while in use; start again"
                    ) from error
                raise
            with answer["Body"] as body:
                self._check_answer(key, answer, start, end, of)
                while (left := size - len(found)) and (chunk := body.read(min(left, _CHUNK))):
                    found += chunk

    def _check_answer(self, key: str, answer: dict[str, Any], start: int, end: int, of: Stored) -> None:
        """Make sure that an answer is the range that was asked for, of the object that was meant."""
        if answer.get("ETag", of.etag) != of.etag:
            raise StorageError(f"{self._place(key)}: was replaced while in use; start again")
        if answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
            if (start, end) == (0, of.size) and answer["ContentLength"] == of.size:
                return
            raise StorageError(
                f"{self._place(key)}: the server answers a request for a part with the whole object; "
                "images cannot be read from such a server: copy them to a folder first"
            )
        given = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        if given is None or int(given[1]) != start or not start <= int(given[2]) < end:
            raise StorageError(f"{self._place(key)}: the server gave another range than it was asked for")
        if given[3] not in {"*", str(of.size)}:
            raise StorageError(f"{self._place(key)}: was replaced while in use; start again")

    def get(self, key: str, most: int) -> bytes | None:
        """Return a small object whole; None when there is none, or it is larger."""
        found = self.head(key)
        if found is None or found.size > most:
            return None
        return self.read(key, 0, found.size, found)

    def put(self, key: str, content: bytes, *, writer: str = "", only_new: bool = False) -> None:
        """Store a whole object at once.

        Raises:
            ExistsAlreadyError: only a new one was wanted. What a broken connection left is ours: see `head`.
        """
        self._conditionally(
            "put_object",
            key,
            only_new=only_new,
            Body=content,
            ContentMD5=_md5(content),
            Metadata={_WRITER: writer},
        )

    def begin(self, key: str, writer: str) -> str:
        """Begin an object of many parts; the id of its upload."""
        answer = self._call("create_multipart_upload", key, {"Metadata": {_WRITER: writer}}, writing=True)
        return str(answer["UploadId"])

    def put_part(self, key: str, upload: str, number: int, content: bytes) -> str:
        """Send a part, which the server checks; its entity tag."""
        answer = self._call(
            "upload_part",
            key,
            {"UploadId": upload, "PartNumber": number, "Body": content, "ContentMD5": _md5(content)},
            writing=True,
        )
        return str(answer["ETag"])

    def parts(self, key: str, upload: str) -> dict[int, tuple[int, str]]:
        """Return what an upload holds: by the numbers of the parts, their sizes and entity tags."""
        found: dict[int, tuple[int, str]] = {}
        after = 0
        while True:
            more = {"UploadId": upload, "PartNumberMarker": after}
            page = self._call("list_parts", key, more, writing=True)
            for entry in page.get("Parts", ()):
                found[entry["PartNumber"]] = (entry["Size"], str(entry["ETag"]))
            following = page.get("NextPartNumberMarker") or 0
            if not page.get("IsTruncated") or following <= after:
                return found
            after = following

    def complete(self, key: str, upload: str, etags: list[str]) -> None:
        """Make an object of its parts.

        Raises:
            ExistsAlreadyError, NotFoundError: it is there already, or the upload is not; see `put`.
        """
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        self._conditionally(
            "complete_multipart_upload", key, only_new=True, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def abandon(self, key: str, upload: str) -> None:
        """Forget an upload and its parts; none is no error."""
        try:
            self._call("abort_multipart_upload", key, {"UploadId": upload}, writing=True)
        except NotFoundError:
            return

    def uploads(self, prefix: str) -> list[tuple[str, str]]:
        """List the uploads under way: key and id."""
        found: list[tuple[str, str]] = []
        marker: dict[str, str] = {}
        while True:
            page = self._call("list_multipart_uploads", prefix, {"Prefix": prefix, **marker}, writing=True)
            found += [(entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", ())]
            following = {
                "KeyMarker": page.get("NextKeyMarker"),
                "UploadIdMarker": page.get("NextUploadIdMarker"),
            }
            if not page.get("IsTruncated") or following == marker or not following["KeyMarker"]:
                return found
            marker = {name: text for name, text in following.items() if text}

    def delete(self, key: str) -> None:
        """Remove an object; none is no error."""
        self._call("delete_object", key, writing=True)

    def _conditionally(self, operation: str, key: str, *, only_new: bool, **parameters: object) -> None:
        """Run a write that makes a new object, by a condition where the server knows such."""
        if only_new and self._conditional:
            try:
                self._try(operation, key, {**parameters, "IfNoneMatch": "*"}, writing=True)
            except _UnknownRequestError:
                self._conditional = False
            else:
                return
        self._call(operation, key, parameters, writing=True)

    def _call(
        self, operation: str, key: str, parameters: Mapping[str, object] = NOTHING, *, writing: bool = False
    ) -> dict[str, Any]:
        try:
            return self._try(operation, key, parameters, writing=writing)
        except _UnknownRequestError as error:
            raise _failed(
                f"{self._place(key)}: the server does not know {operation}: {error}", writing
            ) from error

    def _try(
        self, operation: str, key: str, parameters: Mapping[str, object], *, writing: bool
    ) -> dict[str, Any]:
        named = {} if operation in _OF_BUCKETS else {"Key": key}

        def attempt() -> dict[str, Any]:
            with self._said(key, writing=writing):
                call = getattr(self._client, operation)
                answer: dict[str, Any] = call(Bucket=self._name, **named, **parameters)
                return answer

        try:
            return self._patience.run(attempt)
        except PassingError as error:
            raise self._given_up(key, error, writing=writing) from error

    @contextmanager
    def _said(self, key: str, *, writing: bool) -> Iterator[None]:
        """Translate what botocore raises."""
        try:
            yield
            self._reached = True
        except ClientError as error:
            self._reached = True
            raise self._refusal(key, error, writing=writing) from error
        except (
            NoCredentialsError,
            PartialCredentialsError,
            CredentialRetrievalError,
            TokenRetrievalError,
        ) as error:
            raise CredentialsError(f"{self._place(key)}: no credentials: {_reason(error)}") from error
        except SSLError as error:
            raise _failed(
                f"{self._place(key)}: the server is not who it should be: {_reason(error)}", writing
            ) from error
        except _BROKEN as error:
            if isinstance(error, EndpointConnectionError) and not self._reached:
                raise _failed(f"{self._place(key)}: {_reason(error)}", writing) from error
            raise PassingError from error
        except BotoCoreError as error:
            raise _failed(f"{self._place(key)}: {_reason(error)}", writing) from error

    def _refusal(self, key: str, error: ClientError, *, writing: bool) -> Exception:
        code, status = _code(error), _status(error)
        if code in _CONDITION:
            return ExistsAlreadyError()
        if code == "NotImplemented":
            return _UnknownRequestError(_reason(error))
        if code not in _ANSWERS and (code in _BUSY_CODES or status == 429 or status >= 500):
            return PassingError()
        said = f"the server says {code}" if code.isdigit() else f"{code}: {_reason(error)}"
        place = f"s3://{self._name}" if code == "NoSuchBucket" else self._place(key)
        kind = _ANSWERS.get(code) or _STATUSES.get(status) or (DestinationError if writing else StorageError)
        return kind(f"{place}: {said}")

    def _given_up(self, key: str, error: PassingError, *, writing: bool) -> MountfsError:
        cause = error.__cause__
        reason = _reason(cause) if cause is not None else "it failed"
        return _failed(
            f"{self._place(key)}: given up after {self._patience.attempts} attempts: {reason}", writing
        )

    def _place(self, key: str) -> str:
        return f"s3://{self._name}/{key}"


def _failed(message: str, writing: bool) -> MountfsError:  # noqa: FBT001 (which of two classes)
    return DestinationError(message) if writing else StorageError(message)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(error: BaseException) -> str:
    """Return the message of an error in one line."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Message", "")) or f"status {_status(error)}"
    return " ".join(str(error).split()) or type(error).__name__


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _ns(moment: Any) -> int:  # noqa: ANN401 (a datetime, of an untyped library)
    return int(moment.timestamp()) * 1_000_000_000
