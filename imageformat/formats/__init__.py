"""Image formats: one plug-in module or folder each, with ``PLUGIN = ImageFormat(...)``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from imageformat.errors import NotAnImageError
from imageformat.formats.native import PLUGIN as NATIVE
from imageformat.plugins import discover

if TYPE_CHECKING:
    from imageformat.layer import ImageFormat, ImageLayer, Opening


def image_formats() -> tuple[ImageFormat, ...]:
    """All formats that work here."""
    return discover(sys.modules[__name__]).available


def open_image(opening: Opening) -> ImageLayer:
    """Open a stored file as a layer, whatever its format. Takes ownership of the device.

    The content decides; the suffix of the name only when the content says nothing, so that an image with
    a damaged first byte is called damaged.

    Raises:
        NotAnImageError: no format recognises it.
        ImageError: a format does, and finds it damaged, incomplete or too new.
    """
    try:
        fitting = format_of(opening)
    except BaseException:
        opening.device.close()
        raise
    return fitting.open(opening)


def format_of(opening: Opening) -> ImageFormat:
    """Tell the format of a stored file.

    Raises:
        NotAnImageError: no format recognises it.
    """
    if NATIVE.probe(opening.device):
        return NATIVE  # most images are ours, and need no reader of any other format to be loaded
    known = image_formats()
    for record in known:
        if not record.vague and record.probe(opening.device):
            return record
    for record in known:
        if opening.name.lower().endswith(record.suffixes):
            return record
    for record in known:
        if record.vague and record.probe(opening.device):
            return record
    names = ", ".join(record.name for record in known)
    raise NotAnImageError(
        f"{opening.name}: not an image of a known format ({names}); a raw disk has a name that ends in .img"
    )


def is_listed(name: str) -> bool:
    """Tell whether a file of that name counts as an image when a folder is looked through."""
    return is_ours(name) or name.lower().endswith(listed_suffixes())


def is_ours(name: str) -> bool:
    """Tell whether a file of that name is an image of our own format."""
    return name.lower().endswith(NATIVE.suffixes)


def listed_suffixes() -> tuple[str, ...]:
    """Return how the names of files end that count as images when a folder is looked through."""
    return tuple(suffix for record in image_formats() if record.listed for suffix in record.suffixes)


def unlisted_suffixes() -> tuple[str, ...]:
    """Return how the names of files end that are images only when they are named."""
    return tuple(suffix for record in image_formats() if not record.listed for suffix in record.suffixes)
