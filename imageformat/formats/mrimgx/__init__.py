"""Images and file-and-folder backups of Macrium Reflect X, and of whole sets of them."""

from __future__ import annotations

from imageformat.formats.mrimgx.export import write_disk
from imageformat.formats.mrimgx.member import is_container
from imageformat.formats.mrimgx.reader import FORMAT, open_mrimgx
from imageformat.formats.mrimgx.sets import SUFFIXES
from imageformat.layer import ImageFormat

PLUGIN = ImageFormat(FORMAT, SUFFIXES, is_container, open_mrimgx, write_disk)
