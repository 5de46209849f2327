"""One copy of a set without the command line's start-up, for tests that kill it hundreds of times.

one_copy.py REPOSITORY DESTINATION SET: prints "done" once it is acknowledged.
"""

import sys
from pathlib import Path

from engine.copying import copy_set
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.storage.places import open_storage


def main(place: str, destination: str, set_name: str) -> None:
    source = Repository(LocalStorage(Path(place)))
    target = Repository(open_storage(destination))
    try:
        copy_set(source, target, set_name)
        print("done", flush=True)
    finally:
        target.close()
        source.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
