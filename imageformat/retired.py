"""Files of a set that do not count: those that a merge has not yet proven, or not yet removed.

A journal is an object of the set that names them. The one of what is old, once it is there, is the step from
the state before the merge to the one after it; until then the one of what is new hides that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from imageformat.errors import CorruptImageError, MountfsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from imageformat.storage import Storage

NEW_JOURNAL = "merge-new.journal"
OLD_JOURNAL = "merge-old.journal"
_MAX_SIZE = 1 << 20


class _Journal(msgspec.Struct, frozen=True):
    version: int
    names: list[str]
    """File names in the folder of the set, in the order in which they are to be removed."""


def encode_journal(names: Sequence[str]) -> bytes:
    """Return the bytes of a journal.

    Raises:
        UsageError: it would be larger than what is read back.
    """
    data = msgspec.json.encode(_Journal(1, list(names)))
    if len(data) > _MAX_SIZE:
        raise UsageError(f"{len(names)} files are more than can be replaced at once; merge fewer points")
    return data


def read_journal(storage: Storage, prefix: str, name: str) -> tuple[str, ...]:
    """Return the keys that a journal of the set names.

    Raises:
        CorruptImageError: it is damaged, or names what is no file of the set.
        NotFoundError, AccessDeniedError, StorageError
    """
    device = storage.open(f"{prefix}{name}")
    try:
        data = device.pread(0, device.size) if device.size <= _MAX_SIZE else b""
    finally:
        device.close()
    try:
        journal = msgspec.json.decode(data, type=_Journal)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptImageError(f"{prefix}{name}: the journal of a merge is damaged; remove it") from error
    if journal.version != 1 or not all(_is_plain(entry) for entry in journal.names):
        raise CorruptImageError(f"{prefix}{name}: the journal of a merge is not one known here; remove it")
    return tuple(f"{prefix}{entry}" for entry in journal.names)


def _is_plain(name: str) -> bool:
    return name.isprintable() and "/" not in name and name.endswith(".mfi") and not name.startswith(".")


def hidden_keys(storage: Storage, prefix: str, listed: Collection[str]) -> frozenset[str]:
    """Return the keys that do not count; ``listed`` are those that the set has.

    A journal that cannot be read hides nothing.
    """
    for name in (OLD_JOURNAL, NEW_JOURNAL):
        if f"{prefix}{name}" in listed:
            try:
                return frozenset(read_journal(storage, prefix, name))
            except MountfsError:
                return frozenset()
    return frozenset()
