"""A real S3 server: OpenStack Swift with its S3 interface, as Debian has it, started when first needed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session

from imageformat.storage._s3requests import s3_client
from support.requirements import require_tool
from support.servers import at_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

KEY = "test:tester"
SECRET = "testing"
BUCKET = "images"
_in_use: dict[str, str] = {}
_SERVER = Path(__file__).with_name("swift_server.py")


@dataclass(frozen=True)
class TestBucket:
    """A bucket, reached around the product."""

    __test__ = False
    port: int
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        """Every key that begins so, also hidden ones."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def uploads(self, prefix: str) -> list[str]:
        """The keys of uploads that were begun and not ended."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for entry in found.get("Uploads", ())]


def environment(endpoint: str | None = None) -> Mapping[str, str]:
    """What tells botocore of the server: its own variables, as users set them."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL_S3": endpoint or bucket().endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None) -> None:
    """Let this process find the server, or what stands before it."""
    settings = environment(endpoint)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if _in_use != settings:
        s3_client.cache_clear()  # making one takes a while
        _in_use.clear()
        _in_use.update(settings)


@cache
def bucket() -> TestBucket:
    """The bucket of this process's own server."""
    require_tool("swift-ring-builder")
    folder = tempfile.mkdtemp(prefix="swift-")
    server = subprocess.Popen(
        ["/usr/bin/python3", "-I", str(_SERVER), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    at_end(partial(_end, server, folder))
    assert server.stdout is not None
    port = int(server.stdout.readline() or 0)
    assert port, "the S3 server did not start"
    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        endpoint_url=f"http://127.0.0.1:{port}",
    )
    client.create_bucket(Bucket=BUCKET)
    return TestBucket(port, client)


def _end(server: subprocess.Popen[str], folder: str) -> None:
    server.communicate(timeout=20)  # its input ends
    shutil.rmtree(folder, ignore_errors=True)
