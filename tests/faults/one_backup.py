"""One backup without the command line's start-up, for tests that kill it hundreds of times.

one_backup.py SOURCE REPOSITORY SET [full|diff|inc]: prints the key of the image once it is acknowledged.
"""

import sys
from pathlib import Path

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage


def main(source: str, place: str, set_name: str, kind: str = "") -> None:
    device = open_source(source)
    repository = Repository(LocalStorage(Path(place)))
    options = BackupOptions(type=ImageType(kind) if kind else None, block_size=4096, threads=1)
    try:
        print(backup(device, repository, set_name, options, origin={"source": source}).key, flush=True)
    finally:
        repository.close()
        device.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
