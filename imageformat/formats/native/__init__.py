"""The native image format, ``.mfi``: write-once, chained, every block proven. The law: docs/format.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.formats.native.reader import open_native, probe
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from imageformat.layer import ImageLayer, Opening


def _open(opening: Opening) -> ImageLayer:
    return open_native(opening.device, opening.name, opening.cache)


PLUGIN = ImageFormat("mfi", (".mfi",), probe, _open)
