"""Backing files as QEMU's formats name them: what lies below an overlay.

An overlay says which file it stands on and, since 2010, which format that file has. That is trusted, and
``raw`` means the bytes of the file whatever they look like: a guest can write a header of another format at
the start of its raw disk. Where the format is not said, it is told by the content, but a file whose format
was guessed may not open further files, so that such a header leads nowhere; the user can name them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import UnsupportedFeatureError
from imageformat.foreign import ForeignLayer
from imageformat.formats import format_of, image_formats
from imageformat.layer import Opening

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer

_OTHER_NAMES = {"vpc": "vhd", "qcow": "qcow1"}
"""What QEMU calls a format otherwise than we do."""
_RAW = frozenset({"raw", "file", "host_device"})


class Backing:
    """An opened backing file. Owns it."""

    def __init__(self, device: BlockDevice, layer: ImageLayer | None) -> None:
        self.device = device
        """The disk below."""
        self._layer = layer

    @property
    def identity(self) -> bytes:
        """What tells its content from any other, as far as its format can."""
        return b"" if self._layer is None else self._layer.info.root

    def close(self) -> None:
        """Close the file and what it stands on; idempotent."""
        if self._layer is None:
            self.device.close()
        else:
            self._layer.close()


def open_backing(opening: Opening, name: str, format_name: str) -> Backing:
    """Open the file that an image calls ``name``; ``format_name`` is QEMU's, empty when it is not said.

    Raises:
        AccessDeniedError, ParentMissingError, ChainCycleError: the file may not or cannot be opened.
        UnsupportedFeatureError: its format is not known here.
        MountfsError: what is wrong with it.
    """
    sibling = opening.siblings.open(name)
    if format_name in _RAW:
        return Backing(sibling.device, None)
    siblings = sibling.siblings if format_name else sibling.siblings.guessed()
    below = Opening(sibling.device, sibling.name, opening.cache, siblings, opening.secrets)
    try:
        wanted = _OTHER_NAMES.get(format_name, format_name)
        record = (
            next((record for record in image_formats() if record.name == wanted), None)
            if format_name
            else format_of(below)
        )
        if record is None:
            raise UnsupportedFeatureError(
                f"{opening.name}: stands on {name!r} of format {format_name!r}, which is not known here"
            )
        if record.name == "raw":
            return Backing(sibling.device, None)
    except BaseException:
        sibling.device.close()
        raise
    layer = record.open(below)
    if not isinstance(layer, ForeignLayer):
        layer.close()
        raise UnsupportedFeatureError(f"{opening.name}: stands on {name!r}, which is no disk of its own")
    return Backing(layer.device(), layer)
