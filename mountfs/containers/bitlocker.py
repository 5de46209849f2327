"""BitLocker, of Windows Vista to 11 and To Go: one enciphered volume, opened with any of its protectors.

After "BitLocker Drive Encryption (BDE) format" of the libbde project: keys, encryption methods, virtual
sectors. A key that only a TPM holds cannot be had from an image; the recovery key opens such a volume.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from imageformat.device import Concat, MemoryDevice, Slice, check_range
from imageformat.errors import LockedError, UnsupportedVolumeError, VolumeError
from imageformat.extent import Extent, ExtentKind
from mountfs.containers import InnerVolume, OpenedContainer, Place, VolumeContainer
from mountfs.containers._elephant import ElephantSectors
from mountfs.containers._fve import (
    CCM_KEY,
    ENTRY_FVEK,
    KEY,
    SECTOR,
    STRETCH_KEY,
    VISTA,
    VMK,
    parse_entries,
    read_volume,
    startup_keys,
)
from mountfs.containers._sectors import (
    CbcSectors,
    DecipheredDevice,
    XtsSectors,
    counted_vectors,
    enciphered_vectors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.secrets import Secrets
    from mountfs.containers import Places
    from mountfs.containers._fve import FveEntry, FveVolume
    from mountfs.containers._sectors import SectorCipher
    from mountfs.tree import FileSystemInfo

_CLEAR, _STARTUP, _RECOVERY, _PASSWORD = 0x0000, 0x0200, 0x0800, 0x2000
"""What protects a volume master key."""
_MAX_PROTECTORS = 32
_ROUNDS = 0x100000
_RECOVERY_KEY = re.compile(rb"\s*(\d{6})" + rb"[-\s]?(\d{6})" * 7 + rb"\s*")
_VISTA_HEADER = 16 * SECTOR
_KEY_SIZES = {0x8000: 16, 0x8001: 32, 0x8002: 16, 0x8003: 32, 0x8004: 32, 0x8005: 64}
"""Methods: AES-CBC with diffuser, AES-CBC, AES-XTS; bytes of the key of each."""


def open_bitlocker(devices: Iterator[BlockDevice], info: FileSystemInfo, secrets: Secrets) -> OpenedContainer:  # noqa: ARG001
    """See `VolumeContainer.open`."""
    device = next(devices)
    device = Slice(device, 0, device.size // SECTOR * SECTOR)
    volume = read_volume(device)
    if volume.method not in _KEY_SIZES:
        raise UnsupportedVolumeError(f"it is encrypted with BitLocker's method {volume.method:#06x}")
    cipher = _cipher(volume, _volume_key(volume, _master_key(volume, secrets)))
    step = SECTOR if isinstance(cipher, CbcSectors | ElephantSectors) else 1
    deciphered = DecipheredDevice(device, cipher, step=step)
    spans = tuple(_spans(volume, device.size))
    plain = Concat([_span_device(span, volume, device, deciphered) for span in spans])
    return OpenedContainer((InnerVolume("", plain.size, plain, _places(spans)),))


class _What(enum.Enum):
    """Where the plain bytes of a range come from."""

    ZEROS = enum.auto()
    """The metadata, and where the first sectors are kept: Windows shows zeros there."""
    DECIPHERED = enum.auto()
    STORED = enum.auto()
    """Not enciphered yet, or not any more."""
    BOOT_SECTORS = enum.auto()
    """Vista: stored, but for what marks it as BitLocker."""


class _Span(NamedTuple):
    """A range of the plain volume."""

    start: int
    size: int
    what: _What
    source: int
    """Where it lies on the device."""


def _spans(volume: FveVolume, size: int) -> Iterator[_Span]:
    """Cut the plain volume where its bytes come from another place."""
    header_end = _VISTA_HEADER if volume.version == VISTA else volume.header_size
    hidden = [*volume.blocks, (volume.header_offset, volume.header_size)]
    cuts = {0, size, header_end, volume.encrypted_size}
    cuts.update(cut for start, length in hidden for cut in (start, start + length))
    inside = sorted(cut for cut in cuts if 0 <= cut <= size)
    for start, end in itertools.pairwise(inside):
        what, source = _What.DECIPHERED, start
        if any(first <= start < first + length for first, length in hidden):
            what = _What.ZEROS
        elif start < header_end and volume.version == VISTA:
            what = _What.BOOT_SECTORS
        elif start < header_end:
            source = volume.header_offset + start
        elif start >= volume.encrypted_size:
            what = _What.STORED
        yield _Span(start, end - start, what, source)


def _span_device(span: _Span, volume: FveVolume, device: BlockDevice, deciphered: BlockDevice) -> BlockDevice:
    if span.what is _What.ZEROS:
        return _Zeros(span.size)
    if span.what is _What.DECIPHERED:
        return Slice(deciphered, span.source, span.size)
    if span.what is _What.STORED:
        return Slice(device, span.source, span.size)
    boot = bytearray(device.pread(span.source, span.size))
    if not span.source:
        boot[3:11] = b"NTFS    "
        struct.pack_into("<Q", boot, 56, volume.mirror_cluster)
    return MemoryDevice(bytes(boot))


class _Zeros:
    """A device that reads as zeros."""

    block_size = SECTOR

    def __init__(self, size: int) -> None:
        self.size = size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        return bytes(size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        if size:
            yield Extent(offset, size, ExtentKind.ZERO)

    def close(self) -> None:
        """Nothing is held."""


def _places(spans: tuple[_Span, ...]) -> Places:
    def places(offset: int, length: int) -> Iterator[Place]:
        for span in spans:
            first, last = max(offset, span.start), min(offset + length, span.start + span.size)
            if first < last and span.what is not _What.ZEROS:
                yield Place(0, span.source + first - span.start, last - first)

    return places


def _master_key(volume: FveVolume, secrets: Secrets) -> bytes:
    """Try everything that was given on every protector that takes it."""
    protectors = [entry for entry in volume.entries if entry.value_type == VMK and len(entry.data) >= 28]
    for entry in protectors[:_MAX_PROTECTORS]:
        kind = struct.unpack_from("<H", entry.data, 26)[0]
        properties = tuple(parse_entries(entry.data[28:]))
        for key in _keys(kind, entry.data[:16], properties, secrets):
            for found in properties:
                opened = _unwrap(found, key)
                if opened is not None and len(opened) == 32:
                    return opened
    if secrets:
        raise LockedError("none of the passwords and keys that were given opens it")
    raise LockedError(
        "it is encrypted; give its password or recovery key with --password-file, or its .BEK with --key-file"
    )


def _keys(
    kind: int, identifier: bytes, properties: tuple[FveEntry, ...], secrets: Secrets
) -> Iterator[bytes]:
    """Yield what may open one protector."""
    if kind == _CLEAR:
        yield from (entry.data[4:] for entry in properties if entry.value_type == KEY)
    elif kind == _STARTUP:
        for content in secrets.keys():  # noqa: SIM118 (no dictionary)
            yield from (key for known, key in startup_keys(content) if known == identifier)
    elif kind in {_PASSWORD, _RECOVERY}:
        hashed = _password_hash if kind == _PASSWORD else _recovery_hash
        salts = [entry.data[4:20] for entry in properties if entry.value_type == STRETCH_KEY]
        for password in secrets.passwords():
            start = hashed(password)
            if start is not None:
                yield from (_stretch(start, salt) for salt in salts[:1])


def _password_hash(password: bytes) -> bytes | None:
    try:
        text = password.decode("utf-8").encode("utf-16-le")
    except UnicodeError:
        return None
    return hashlib.sha256(hashlib.sha256(text).digest()).digest()


def _recovery_hash(password: bytes) -> bytes | None:
    """Hash a recovery key: eight groups, each of which is a 16-bit number times eleven."""
    match = _RECOVERY_KEY.fullmatch(password)
    if match is None:
        return None
    numbers = [int(group) for group in match.groups()]
    if any(number % 11 or number // 11 > 0xFFFF for number in numbers):
        return None
    return hashlib.sha256(struct.pack("<8H", *(number // 11 for number in numbers))).digest()


def _stretch(start: bytes, salt: bytes) -> bytes:
    """Hash a million times; about a second."""
    fixed, last, sha256 = start + salt, bytes(32), hashlib.sha256
    for count in range(_ROUNDS):
        last = sha256(last + fixed + count.to_bytes(8, "little")).digest()
    return last


def _unwrap(entry: FveEntry, key: bytes) -> bytes | None:
    """Return the key inside an AES-CCM entry, or None when it is something else or ``key`` does not fit."""
    if entry.value_type != CCM_KEY or len(entry.data) < 12 + 16 + 12 or len(key) != 32:
        return None
    nonce, tag, sealed = entry.data[:12], entry.data[12:28], entry.data[28:]
    try:
        opened = AESCCM(key).decrypt(nonce, sealed + tag, None)
    except InvalidTag:
        return None
    size = struct.unpack_from("<I", opened)[0]
    return opened[12:size] if 12 <= size <= len(opened) else None


def _volume_key(volume: FveVolume, master: bytes) -> bytes:
    for entry in volume.entries:
        if entry.type == ENTRY_FVEK:
            key = _unwrap(entry, master)
            if key is not None:
                return key
    raise VolumeError("its master key was found, but does not open the key of its data")


def _cipher(volume: FveVolume, key: bytes) -> SectorCipher:
    size, method = _KEY_SIZES[volume.method], volume.method
    diffused = method in {0x8000, 0x8001}
    if len(key) < (32 + size if diffused else size):
        raise VolumeError(f"the key of its data has {len(key)} bytes, too few for its method")
    if diffused:
        return ElephantSectors(key[:size], key[32 : 32 + size], SECTOR)
    if method in {0x8002, 0x8003}:
        return CbcSectors(key[:size], SECTOR, enciphered_vectors(key[:size]))
    return XtsSectors(key[:size], SECTOR, counted_vectors)


PLUGIN = VolumeContainer("bitlocker", frozenset({"bitlocker"}), open_bitlocker)
