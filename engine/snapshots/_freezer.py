"""A program of its own: freezes file systems, and thaws them when its parent says so, dies, or is too slow.

freezer.py SECONDS MOUNT_POINT...: says "ready", and freezes when it is sent a byte; says "frozen", or what
failed; thaws at the next byte, at the end of its input, or after so many seconds. Ends with 0, or with 3
when the time had run out. Nothing is loaded, opened or written between freezing and thawing.
"""

import errno
import os
import select
import signal
import sys
import time

if sys.platform != "win32":
    import fcntl

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
LATE = 3


def main(seconds: float, places: list[str]) -> int:
    """Run the life of a freeze."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    opened = [os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for place in places]
    os.write(1, b"ready\n")
    if not os.read(0, 1):
        return 0
    frozen: list[int] = []
    until = time.monotonic() + seconds
    try:
        for fd, place in zip(opened, places, strict=True):
            try:
                fcntl.ioctl(fd, FIFREEZE, 0)
            except OSError as error:
                os.write(1, f"{errno.errorcode.get(error.errno or 0, 'EIO')} {place!r}\n".encode())
                return 1
            frozen.append(fd)
        os.write(1, b"frozen\n")
        ready, _, _ = select.select([0], [], [], max(0.0, until - time.monotonic()))
        return 0 if ready else LATE
    finally:
        for fd in reversed(frozen):
            thaw(fd)


def thaw(fd: int) -> None:
    """Thaw one; somebody else may have done it."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
