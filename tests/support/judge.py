"""Images held against a judge: the raw disk that another tool reads from them."""

from __future__ import annotations

import random
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.extent import ExtentKind
from imageformat.formats import open_image
from imageformat.layer import Opening
from imageformat.secrets import NO_SECRETS
from imageformat.siblings import Siblings
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from support.requirements import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from imageformat.layer import ImageLayer
    from imageformat.secrets import Secrets
    from imageformat.siblings import NamedFile

STEP = 1 << 20


def qemu_truth(path: Path, format_name: str) -> bytes:
    """The disk that qemu-img reads from an image."""
    raw = path.with_name(f"{path.name}.truth")
    run("qemu-img", "convert", "-f", format_name, "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


@contextmanager
def opened(
    path: Path,
    *,
    cache: BlockCache | None = None,
    named: Sequence[NamedFile] = (),
    secrets: Secrets = NO_SECRETS,
) -> Iterator[ImageLayer]:
    """An image file, opened as `Repository` does."""
    storage = LocalStorage(path.parent)
    siblings = Siblings(storage, path.name, named)
    cache = BlockCache(4 << 20) if cache is None else cache
    opening = Opening(storage.open(path.name), path.name, cache, siblings, secrets)
    with closing(open_image(opening)) as layer:
        yield layer


def view_of(layer: ImageLayer, disk: int = 0, *, capacity: int = 4 << 20) -> ImageView:
    """The disk as everything above sees it."""

    def find(_: object) -> ImageLayer:
        raise AssertionError("an image of another tool has no ancestors for the chain")

    return ImageView(Chain(layer, find), BlockCache(capacity), disk=disk)


def hold_against(layer: ImageLayer, truth: bytes, disk: int = 0, *, reads: int = 60, seed: int = 1) -> None:
    """Every byte in order, ranges anywhere, and what the extents call empty."""
    view = view_of(layer, disk)
    assert view.size == len(truth)
    for offset in range(0, len(truth), STEP):
        size = min(STEP, len(truth) - offset)
        assert view.pread(offset, size) == truth[offset : offset + size], f"disk offset {offset}"
    device = layer.device(disk)  # type: ignore[attr-defined]
    source = random.Random(seed)
    for number in range(reads if truth else 0):
        offset = source.randrange(len(truth))
        size = min(source.choice([1, 512, 4096, 70_000, 300_000]), len(truth) - offset)
        assert (device, view)[number % 2].pread(offset, size) == truth[offset : offset + size], (offset, size)
    position = 0
    for extent in device.extents(0, len(truth)):
        assert extent.offset == position
        position = extent.end
        if extent.kind is not ExtentKind.DATA:
            assert truth.count(0, extent.offset, extent.end) == extent.length, extent
    assert position == len(truth)
