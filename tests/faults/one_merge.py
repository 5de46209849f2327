"""One removal of points without the command line's start-up, for tests that kill it hundreds of times.

one_merge.py REPOSITORY SET NUMBER...: prints "done" once it is acknowledged.
"""

import sys
from pathlib import Path

from engine.merge import plan_removal, remove_points
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage


def main(place: str, set_name: str, *numbers: str) -> None:
    repository = Repository(LocalStorage(Path(place)))
    try:
        image_set = repository.image_set(set_name)
        gone = {point.key for point in image_set.points if str(point.number) in numbers}
        if gone:
            remove_points(repository, set_name, plan_removal(image_set, gone))
        print("done", flush=True)
    finally:
        repository.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
