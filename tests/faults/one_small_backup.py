"""`one_backup.py` that writes 16 KiB at a time, so that there is much to be killed in the middle of."""

import sys

from one_backup import main  # type: ignore[import-not-found]

from imageformat.storage import localwriter

if __name__ == "__main__":
    localwriter._BUFFER = 16 << 10
    main(*sys.argv[1:])
