"""The process ``mountfs``. Signals come first: Ctrl-C while the program is still being loaded is no crash."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to clean up or to explain yet


def main() -> None:
    """Load the command line and run it; does not return."""
    import importlib  # noqa: PLC0415 (whatever is loaded first is loaded before Ctrl-C is safe)

    importlib.import_module("mountfs.cli.__main__").main()


if __name__ == "__main__":
    main()
