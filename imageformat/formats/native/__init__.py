"""The native image format, ``.mfi``: write-once, chained, every block proven. The law: docs/format.md."""

from imageformat.formats.native.reader import open_native, probe
from imageformat.layer import ImageFormat

PLUGIN = ImageFormat("mfi", (".mfi",), probe, open_native)
