"""The process ``mountfs``. Signals come first: Ctrl-C while the program is still being loaded is no crash."""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to clean up or to explain yet


def main() -> None:
    """Load the command line and run it; does not return."""
    _open_closed_streams()
    import importlib  # noqa: PLC0415 (whatever is loaded first is loaded before Ctrl-C is safe)

    importlib.import_module("mountfs.cli.__main__").main()


def _open_closed_streams() -> None:
    """Take the numbers of standard streams that are closed, or a disk would get them, and our messages.

    Nothing comes from such an input, writing to such an output fails as it did, and errors are dropped.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    main()
