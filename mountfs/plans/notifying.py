"""Telling people how a run went, through Apprise. What goes wrong here is a warning, and never a failed run.

The URLs hold passwords: of each, nothing but its kind and its number is ever said.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mountfs.plans.model import Notify
    from mountfs.plans.records import RunRecord

_WANTED = {"failure": {"failed", "interrupted"}, "warning": {"failed", "interrupted", "warning"}}
_KINDS = {"ok": "SUCCESS", "warning": "WARNING"}
_MAX_FILE = 1 << 16


def is_wanted(notify: Notify, outcome: str) -> bool:
    """Whether anybody is to be told of a run that ended so."""
    asked = bool(notify.urls or notify.url_file)
    return asked and (notify.on == "always" or outcome in _WANTED[notify.on])


def notify_all(notify: Notify, record: RunRecord, title: str, body: str) -> tuple[str, ...]:
    """Tell all; return what went wrong, one line each, without any secret."""
    urls, problems = _urls(notify)
    if not urls:
        return problems
    try:
        import apprise  # noqa: PLC0415 (an optional library, in the one file that uses it)
    except ImportError:
        return (*problems, "nobody was notified: install the library with pip install mountfs[notify]")
    _silence()
    kind = _KINDS.get(record.outcome, "FAILURE")
    for number, url in enumerate(urls, 1):
        what = f"notification {number}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the library are for its authors
                teller = apprise.Apprise()
                if not teller.add(url):
                    problems = (*problems, f"{what}: Apprise does not understand this URL")
                    continue
                what = f"{what} ({url.partition('://')[0]})"
                if not teller.notify(title=title, body=body, notify_type=getattr(apprise.NotifyType, kind)):
                    problems = (*problems, f"{what} could not be delivered")
        except Exception as error:  # noqa: BLE001 (a plug-in of a library: a backup must not fail with it)
            problems = (*problems, f"{what} failed: {type(error).__name__}")
    return problems


def _urls(notify: Notify) -> tuple[Sequence[str], tuple[str, ...]]:
    if notify.url_file is None:
        return notify.urls, ()
    try:
        with Path(notify.url_file).open(encoding="utf-8") as file:
            lines = file.read(_MAX_FILE).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        return notify.urls, (f"{notify.url_file}: cannot be read: {reason}",)
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return (*notify.urls, *named), ()


def _silence() -> None:
    """Let the library log nothing: it may name its URLs."""
    for name in ("apprise", "urllib3", "requests"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
