"""One snapshot that is made, read and removed, for tests that kill it in the middle.

one_snapshot.py SOURCE HOW STATE: prints "done" at the end; STATE is the folder of the journal.
"""

import sys
from pathlib import Path

from engine.devices.source import open_source
from engine.snapshots.taking import facts_of, take


def main(path: str, choice: str, state: str) -> None:
    source = open_source(path)
    still, _ = take(source, facts_of(source), choice, Path(state), print)
    still.pread(0, 1 << 16)
    still.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
