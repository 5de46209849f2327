"""What a LUKS header says: key slots, digests, and the one segment that is enciphered.

LUKS1 On-Disk Format Specification 1.2.3, section 3; LUKS2 On-Disk Format Specification 1.1.1, sections 2
and 3. Every value is checked for its type and its range before it is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from imageformat.errors import MountfsError, UnsupportedVolumeError, VolumeError
from mountfs.containers._keyslots import Argon2, Digest, Keyslot, Pbkdf2
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.containers._keyslots import Derivation

_MAGIC = b"LUKS\xba\xbe"
_MAGIC_COPY = b"SKUL\xba\xbe"
_LUKS1 = struct.Struct(">6sH32s32s32sII20s32sI40s")
_LUKS1_SLOT = struct.Struct(">II32sII")
_LUKS1_SLOTS = 8
_ACTIVE = 0x00AC71F3
_LUKS2 = struct.Struct(">6sHQQ48s32s64s40s48sQ184x64s")
_BINARY_SIZE = 4096
_CHECKSUM_AT = 448
_CHECKSUM_SIZE = 64
_HEADER_SIZES = tuple(0x4000 << shift for shift in range(9))
_SECTOR_SIZES = frozenset({512, 1024, 2048, 4096})
_MAX_SLOTS = 32
_MAX_DIGEST = 64
"""Deriving a longer one takes longer."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Segment:
    """The enciphered bytes of a volume."""

    offset: int
    size: int
    """A whole number of sectors."""
    encryption: str
    sector_size: int
    first_number: int
    """What the first sector counts as, in units of 512 bytes."""


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """All that is needed to open a volume."""

    segment: Segment
    slots: tuple[tuple[Keyslot, Digest], ...]
    """Key slots in the order in which they are to be tried, and what their keys are recognised by."""


def read_header(device: BlockDevice, version: int) -> LuksHeader:
    """Read the header of a volume, from its copy if it must be.

    Raises:
        UnsupportedVolumeError: it has a feature that is refused; the message names it.
        VolumeError: it is damaged.
    """
    return _read_luks1(device) if version == 1 else _read_luks2(device)


def _read_luks1(device: BlockDevice) -> LuksHeader:
    size = _LUKS1.size + _LUKS1_SLOTS * _LUKS1_SLOT.size
    raw = _piece(device, 0, size)
    _, _, cipher, mode, hash_name, payload, key_size, digest, salt, iterations, _ = _LUKS1.unpack_from(raw)
    if not payload:
        raise UnsupportedVolumeError("its LUKS header is for data that lies on another device")
    encryption, hashed = f"{_name(cipher)}-{_name(mode)}", _name(hash_name)
    known = Digest(Pbkdf2(hashed, iterations, salt), digest)
    slots = []
    for index in range(_LUKS1_SLOTS):
        state, rounds, slot_salt, start, stripes = _LUKS1_SLOT.unpack_from(
            raw, _LUKS1.size + index * _LUKS1_SLOT.size
        )
        if state == _ACTIVE:
            derivation = Pbkdf2(hashed, rounds, slot_salt)
            slot = Keyslot(
                str(index), derivation, start * 512, encryption, key_size, key_size, stripes, hashed
            )
            slots.append((slot, known))
    return LuksHeader(_segment(device, payload * 512, None, encryption, 512, 0), tuple(slots))


def _segment(
    device: BlockDevice, offset: int, size: int | None, encryption: str, sector_size: int, number: int
) -> Segment:
    """Return a segment that lies on the device; without a size it reaches to the end."""
    left = device.size - offset
    wanted = left if size is None else size
    if wanted > left:
        raise VolumeError(f"its data ends {wanted - left} bytes behind the end of the volume")
    if wanted < sector_size:
        raise VolumeError("its data does not lie on this volume: the header is detached, or alone")
    return Segment(offset, wanted // sector_size * sector_size, encryption, sector_size, number)


def _read_luks2(device: BlockDevice) -> LuksHeader:
    copies = sorted(_luks2_copies(device), key=lambda copy: -copy[0])
    if not copies:
        raise VolumeError("both copies of its LUKS2 header are damaged")
    failure: VolumeError | None = None
    for _, text in copies:
        try:
            return _Luks2Json(device, _parse(text)).header()
        except UnsupportedVolumeError:
            raise
        except VolumeError as error:
            failure = failure or error
    raise failure or VolumeError("its LUKS2 header is damaged")


def _luks2_copies(device: BlockDevice) -> Iterator[tuple[int, bytes]]:
    """Yield (sequence number, JSON) of each copy that matches its checksum."""
    primary = _luks2_copy(device, 0, _MAGIC)
    if primary is not None:
        yield primary[:2]
    for offset in (primary[2],) if primary is not None else _HEADER_SIZES:
        copy = _luks2_copy(device, offset, _MAGIC_COPY)
        if copy is not None:
            yield copy[:2]
            return


def _luks2_copy(device: BlockDevice, offset: int, magic: bytes) -> tuple[int, bytes, int] | None:
    try:
        raw = _piece(device, offset, _BINARY_SIZE)
        fields = _LUKS2.unpack_from(raw)
        found, version, size, sequence, _, algorithm, _, _, _, own_offset, checksum = fields
        if found != magic or version != 2 or size not in _HEADER_SIZES or own_offset != offset:
            return None
        whole = _piece(device, offset, size)
        cleared = whole[:_CHECKSUM_AT] + bytes(_CHECKSUM_SIZE) + whole[_CHECKSUM_AT + _CHECKSUM_SIZE :]
        digest = hashlib.new(_name(algorithm), cleared).digest()
    except (MountfsError, ValueError):
        return None
    if not checksum.startswith(digest) or not digest:
        return None
    return sequence, whole[_BINARY_SIZE:].split(b"\0", 1)[0], size


def _parse(text: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VolumeError("the metadata of its LUKS2 header is no JSON") from error
    if not isinstance(found, dict):
        raise VolumeError("the metadata of its LUKS2 header is not what it should be")
    return found


@dataclass(frozen=True, slots=True)
class _Luks2Json:
    """Reads the metadata of LUKS2."""

    device: BlockDevice
    root: Mapping[str, object]

    def header(self) -> LuksHeader:
        self._check_requirements()
        name, segment = self._crypt_segment()
        return LuksHeader(segment, tuple(self._slots(name)))

    def _check_requirements(self) -> None:
        requirements = _table(_table(self.root, "config"), "requirements", optional=True)
        mandatory = requirements.get("mandatory", [])
        if not isinstance(mandatory, list) or mandatory:
            names = ", ".join(map(str, mandatory)) if isinstance(mandatory, list) else "?"
            started = "; its encryption was being changed, finish that with cryptsetup reencrypt"
            hint = started if "reencrypt" in names else ""
            raise UnsupportedVolumeError(f"it requires {safe_text(names[:100])}{hint}")

    def _crypt_segment(self) -> tuple[str, Segment]:
        segments = _table(self.root, "segments")
        if len(segments) != 1:
            raise UnsupportedVolumeError(f"it has {len(segments)} segments; its encryption is being changed")
        name = next(iter(segments))
        segment = _table(segments, name)
        kind = _value(segment, "type", str)
        if kind != "crypt":
            raise UnsupportedVolumeError(f"its data is a segment of type {safe_text(kind[:40])}")
        if "integrity" in segment:
            raise UnsupportedVolumeError("it is protected by dm-integrity, which is not known here")
        size_text = _value(segment, "size", str)
        sector_size = _number(segment, "sector_size", 4096)
        if sector_size not in _SECTOR_SIZES:
            raise VolumeError(f"it claims sectors of {sector_size} bytes")
        return name, _segment(
            self.device,
            _text_number(segment, "offset"),
            None if size_text == "dynamic" else _text_number(segment, "size"),
            _value(segment, "encryption", str),
            sector_size,
            _text_number(segment, "iv_tweak"),
        )

    def _slots(self, segment: str) -> Iterator[tuple[Keyslot, Digest]]:
        digests = list(self._digests(segment))
        slots = _table(self.root, "keyslots")
        if len(slots) > _MAX_SLOTS:
            raise VolumeError(f"it claims {len(slots)} key slots")
        found = []
        for name in slots:
            slot = _table(slots, name)
            priority = _number(slot, "priority", 2) if "priority" in slot else 1
            digest = next((known for names, known in digests if name in names), None)
            if priority and digest is not None and slot.get("type") == "luks2":
                found.append((-priority, _keyslot(name, slot), digest))
        for _, keyslot, digest in sorted(found, key=lambda entry: entry[0]):
            yield keyslot, digest

    def _digests(self, segment: str) -> Iterator[tuple[list[object], Digest]]:
        digests = _table(self.root, "digests")
        for name in digests:
            digest = _table(digests, name)
            if segment in _value(digest, "segments", list):
                if _value(digest, "type", str) != "pbkdf2":
                    raise UnsupportedVolumeError("its key is recognised by something that is not known here")
                expected = _bytes(digest, "digest")
                if not 0 < len(expected) <= _MAX_DIGEST:
                    raise VolumeError(f"its LUKS2 header has a digest of {len(expected)} bytes")
                yield _value(digest, "keyslots", list), Digest(_pbkdf2(digest), expected)


def _keyslot(name: str, slot: Mapping[str, object]) -> Keyslot:
    area, splitter = _table(slot, "area"), _table(slot, "af")
    if _value(area, "type", str) != "raw" or _value(splitter, "type", str) != "luks1":
        raise UnsupportedVolumeError(
            f"its key slot {safe_text(name[:10])} is of a kind that is not known here"
        )
    return Keyslot(
        name[:10],
        _derivation(_table(slot, "kdf")),
        _text_number(area, "offset"),
        _value(area, "encryption", str),
        _number(area, "key_size"),
        _number(slot, "key_size"),
        _number(splitter, "stripes"),
        _value(splitter, "hash", str),
    )


def _derivation(kdf: Mapping[str, object]) -> Derivation:
    kind = _value(kdf, "type", str)
    if kind == "pbkdf2":
        return _pbkdf2(kdf)
    if kind not in {"argon2i", "argon2id"}:
        raise UnsupportedVolumeError(f"it derives its keys with {safe_text(kind[:40])}")
    return Argon2(
        kind, _number(kdf, "time"), _number(kdf, "memory"), _number(kdf, "cpus"), _bytes(kdf, "salt")
    )


def _pbkdf2(fields: Mapping[str, object]) -> Pbkdf2:
    return Pbkdf2(_value(fields, "hash", str), _number(fields, "iterations"), _bytes(fields, "salt"))


def _value(fields: Mapping[str, object], name: str, kind: type[_T]) -> _T:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise VolumeError(f"its LUKS2 header has no proper {name}")
    return value


def _table(fields: Mapping[str, object], name: str, *, optional: bool = False) -> dict[str, object]:
    return {} if optional and name not in fields else _value(fields, name, dict)


def _number(fields: Mapping[str, object], name: str, most: int = 1 << 32) -> int:
    value = _value(fields, name, int)
    if not 0 <= value <= most:
        raise VolumeError(f"its LUKS2 header claims a {name} of {value}")
    return value


def _text_number(fields: Mapping[str, object], name: str) -> int:
    text = _value(fields, name, str)
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise VolumeError(f"its LUKS2 header has no proper {name}")
    return int(text)


def _bytes(fields: Mapping[str, object], name: str) -> bytes:
    try:
        return base64.b64decode(_value(fields, name, str), validate=True)
    except (binascii.Error, ValueError) as error:
        raise VolumeError(f"its LUKS2 header has no proper {name}") from error


def _piece(device: BlockDevice, offset: int, size: int) -> bytes:
    if offset + size > device.size:
        raise VolumeError("its LUKS header is cut off")
    return device.pread(offset, size)


def _name(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "replace")
