"""One copy in small pieces that kills itself, with all that is under way, once so many bytes were read.

one_copy_in_pieces.py REPOSITORY DESTINATION SET BYTES
"""

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

from engine import copying, filecopy
from imageformat.repository import Repository
from imageformat.storage import _s3writer, _sftpwriter, localwriter
from imageformat.storage.local import LocalStorage
from imageformat.storage.places import open_storage

PIECE = 640 << 10


def in_pieces() -> None:
    """Make everything small that is large."""
    filecopy.CHUNK = PIECE
    _s3writer._PART_SIZES = ((10_000, PIECE),)
    _sftpwriter._BUFFER = PIECE
    localwriter._BUFFER = PIECE


def main(place: str, destination: str, set_name: str, most: int) -> None:
    in_pieces()
    done = 0

    def report(_item: copying.CopyItem, count: int) -> None:
        nonlocal done
        done += count
        if done >= most:
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        closing(Repository(LocalStorage(Path(place)))) as source,
        closing(Repository(open_storage(destination))) as target,
    ):
        copying.copy_set(source, target, set_name, report=report)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
