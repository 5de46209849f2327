"""LUKS1 and LUKS2: one enciphered volume, whose key lies in slots that passwords open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.device import Slice
from imageformat.errors import LockedError, UnsupportedVolumeError, VolumeError
from mountfs.containers import InnerVolume, OpenedContainer, VolumeContainer, straight
from mountfs.containers._keyslots import cipher_maker
from mountfs.containers._luks_header import read_header
from mountfs.containers._sectors import DecipheredDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.secrets import Secrets
    from mountfs.containers._luks_header import LuksHeader
    from mountfs.tree import FileSystemInfo

_VERSIONS = {"luks1": 1, "luks2": 2}


def open_luks(devices: Iterator[BlockDevice], info: FileSystemInfo, secrets: Secrets) -> OpenedContainer:
    """See `VolumeContainer.open`. Key files are passphrases like any other."""
    device = next(devices)
    header = read_header(device, _VERSIONS[info.type])
    segment = header.segment
    if not header.slots:
        raise VolumeError("no password can open it any more: all of its key slots were erased")
    key_size = header.slots[0][0].key_size
    make_cipher = cipher_maker(segment.encryption, key_size, segment.sector_size)
    key = _find_key(device, header, secrets)
    if len(key) != key_size:
        make_cipher = cipher_maker(segment.encryption, len(key), segment.sector_size)
    plain = DecipheredDevice(
        Slice(device, segment.offset, segment.size),
        make_cipher(key),
        first_number=segment.first_number,
        step=segment.sector_size // 512,
    )
    return OpenedContainer((InnerVolume("", plain.size, plain, straight(segment.offset)),))


def _find_key(device: BlockDevice, header: LuksHeader, secrets: Secrets) -> bytes:
    """Try every secret on every slot; a slot that makes no sense stands in nobody's way."""
    if not secrets:
        raise LockedError("it is encrypted; give its password with --password-file, or a key with --key-file")
    failure: VolumeError | None = None
    for secret in (*secrets.passwords(), *secrets.keys()):
        for slot, digest in header.slots:
            try:
                key = slot.open(device, secret)
                if digest.fits(key):
                    return key
            except VolumeError as error:
                if failure is None or isinstance(failure, UnsupportedVolumeError):
                    failure = error
    raise failure or LockedError("none of the passwords and keys that were given opens it")


PLUGIN = VolumeContainer("luks", frozenset(_VERSIONS), open_luks)
