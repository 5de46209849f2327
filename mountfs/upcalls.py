"""What the kernel asked and could not get: every failure becomes an errno, and is logged once."""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict

from imageformat.errors import MountfsError

_REMEMBERED = 4096
_log = logging.getLogger(__name__)


class FailureLog:
    """Turns failures into what the kernel is told. Any number of threads may call it at once."""

    def __init__(self) -> None:
        self._logged: OrderedDict[str, None] = OrderedDict()

    def errno_of(self, error: BaseException, what: str) -> int:
        """Return the errno of a failure of ``what``; unexpected ones are EIO, never success."""
        if isinstance(error, MountfsError):
            if error.errno == errno.ENOENT:
                _log.debug("%s", error)
            else:
                self._log_once(str(error))
            return error.errno
        if isinstance(error, OSError):
            return error.errno or errno.EIO
        self._log_once(f"unexpected failure: {type(error).__name__}: {error}")
        _log.debug("unexpected failure in %s", what, exc_info=error)
        return errno.EIO

    def _log_once(self, message: str) -> None:
        """Log each message once: the kernel repeats a failed read in smaller pieces."""
        if message not in self._logged:
            _log.warning("%s", message)
        self._logged[message] = None
        try:
            self._logged.move_to_end(message)
            if len(self._logged) > _REMEMBERED:
                self._logged.popitem(last=False)
        except KeyError:
            return  # another thread took it out at the same time
