"""Files of other programs' virtual disks: opened as the product does, and read to the end."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.cache import BlockCache
from imageformat.extent import ExtentKind
from imageformat.foreign import ForeignLayer
from imageformat.formats import open_image
from imageformat.layer import Opening
from imageformat.secrets import NO_SECRETS, Secrets
from imageformat.siblings import Siblings
from imageformat.storage.local import LocalStorage
from support.requirements import run, shared_data_folder, unavailable

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

MIB = 1 << 20


def open_layer(path: Path, secrets: Secrets = NO_SECRETS) -> ForeignLayer:
    storage = LocalStorage(path.parent)
    siblings = Siblings(storage, path.name)
    layer = open_image(Opening(storage.open(path.name), path.name, BlockCache(), siblings, secrets))
    assert isinstance(layer, ForeignLayer)
    return layer


def content_of(device: BlockDevice, step: int = MIB) -> bytes:
    """Read a device where its extents say that there is data; whatever else must be zeros."""
    parts, position = [], 0
    for extent in device.extents(0, device.size):
        assert extent.offset == position
        assert extent.length > 0
        while position < extent.end:
            size = min(step, extent.end - position)
            is_data = extent.kind is ExtentKind.DATA
            parts.append(device.pread(position, size) if is_data else bytes(size))
            position += size
    assert position == device.size
    return b"".join(parts)


def sha256_of(device: BlockDevice) -> str:
    found, position = hashlib.sha256(), 0
    for extent in device.extents(0, device.size):
        while position < extent.end:
            size = min(4 * MIB, extent.end - position)
            is_data = extent.kind is ExtentKind.DATA
            found.update(device.pread(position, size) if is_data else bytes(size))
            position += size
    return found.hexdigest()


def image_content(path: Path) -> bytes:
    """Open an image, read its disk, close it."""
    layer = open_layer(path)
    try:
        return content_of(layer.device())
    finally:
        layer.close()


def patchy(size: int, seed: int = 1) -> bytes:
    """Content as disks have it: noise, text, zeros, in runs of many lengths."""
    rng = random.Random(seed)
    found = bytearray()
    while len(found) < size:
        length = rng.choice([512, 4096, 65536, 200_000, 3 * MIB, 1000])
        kind = rng.randrange(4)
        if kind == 0:
            found += rng.randbytes(length)
        elif kind == 1:
            found += (b"text %d " % rng.randrange(1000) * length)[:length]
        else:
            found += bytes(length)
    return bytes(found[:size])


def raw_file(folder: Path, content: bytes, name: str = "raw.img") -> Path:
    path = folder / name
    with path.open("wb") as file:
        for at in range(0, len(content), 65536):
            piece = content[at : at + 65536]
            if any(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))
    return path


def qemu_made(raw: Path, kind: str, options: str, path: Path) -> Path:
    run("qemu-img", "convert", "-f", "raw", "-O", kind, *(["-o", options] if options else []), raw, path)
    return path


def qemu_read(path: Path, kind: str) -> bytes:
    """What qemu-img reads from an image."""
    raw = path.with_name(path.name + ".as-raw")
    run("qemu-img", "convert", "-f", kind, "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def stored_params(image_format: str, slow: tuple[str, ...] = ()) -> list[Any]:
    """The stored images of a format of which another tool read the disk, as parameters of a test."""
    named = os.environ.get("MOUNTFS_SHARED_DATA")
    shared = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    listed = shared / "fs-images" / "expectations.json"
    if not listed.exists():
        return []
    return [
        pytest.param(case, id=case["id"], marks=[pytest.mark.nightly] if case["id"] in slow else [])
        for case in json.loads(listed.read_text())["good"]
        if case["format"] == image_format
    ]


def unpack_stored(case: dict[str, Any], folder: Path) -> Path:
    """Unpack a stored image, sparse where it holds zeros."""
    name, packed = next(entry for entry in case["packed"].items() if entry[0].startswith("disk."))
    source = shared_data_folder() / "fs-images" / packed
    if not source.exists():
        unavailable(f"needs {source}")
    with lzma.open(source) as file, (folder / name).open("wb") as target:
        while piece := file.read(MIB):
            if any(piece):
                target.write(piece)
            else:
                target.seek(len(piece), os.SEEK_CUR)
        target.truncate()
    return folder / name
