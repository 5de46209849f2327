"""Image formats: one plug-in module or folder each, with ``PLUGIN = ImageFormat(...)``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from imageformat.errors import NotAnImageError
from imageformat.plugins import discover

if TYPE_CHECKING:
    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.layer import ImageFormat, ImageLayer


def image_formats() -> tuple[ImageFormat, ...]:
    """All formats that work here."""
    return discover(sys.modules[__name__]).available


def open_image(device: BlockDevice, name: str, cache: BlockCache) -> ImageLayer:
    """Open a stored file as a layer, whatever its format. Takes ownership of the device.

    The content decides; the suffix of the name only when the content says nothing, so that an image with
    a damaged first byte is called damaged.

    Raises:
        NotAnImageError: no format recognises it.
        ImageError: a format does, and finds it damaged, incomplete or too new.
    """
    try:
        fitting = next((record for record in image_formats() if record.probe(device)), None) or next(
            (record for record in image_formats() if name.endswith(record.suffixes)), None
        )
        if fitting is None:
            known = ", ".join(record.name for record in image_formats())
            raise NotAnImageError(f"{name}: not an image of a known format ({known})")
    except BaseException:
        device.close()
        raise
    return fitting.open(device, name, cache)
