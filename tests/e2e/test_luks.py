"""LUKS volumes that cryptsetup and qemu-img made, read by us; and headers that make no sense."""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import LockedError, MountfsError, UnsupportedVolumeError, VolumeError
from imageformat.secrets import NO_SECRETS, Secrets
from mountfs.containers._sectors import XtsSectors, counted_vectors
from mountfs.containers.luks import open_luks
from mountfs.signatures import identify
from support.containers import (
    MIB,
    PASSWORD,
    encrypt_luks1,
    encrypt_luks2,
    make_luks1_with_qemu,
    password_file,
)
from support.content import noise
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mountfs.containers import InnerVolume

SECRETS = Secrets((PASSWORD.encode(),))
PLAIN = noise(7, 3 * MIB + 64 * 1024)


def opened(content: bytes, secrets: Secrets = SECRETS) -> InnerVolume:
    device = MemoryDevice(content)
    info = identify(device)
    assert info is not None
    (volume,) = open_luks(iter([device]), info, secrets).volumes
    assert volume.device is not None
    assert volume.device.size == volume.size
    return volume


def check(content: bytes, plain: bytes) -> None:
    """Everything reads right, at any offset; and its places are where the ciphertext of it lies."""
    volume = opened(content)
    device = volume.device
    assert device is not None
    assert device.pread(0, len(plain)) == plain
    for offset, size in [
        (1, 1),
        (511, 2),
        (4095, 4098),
        (131071, 3),
        (len(plain) - 5, 5),
        (777, 300000),
        (9, 0),
    ]:
        assert device.pread(offset, size) == plain[offset : offset + size]
    (place,) = volume.places(8192, 4096)
    damaged = bytearray(content)
    damaged[place.offset : place.offset + 4096] = bytes(4096)
    changed = opened(bytes(damaged)).device
    assert changed is not None
    assert changed.pread(0, 8192) == plain[:8192]
    assert changed.pread(8192, 4096) != plain[8192:12288]
    assert changed.pread(12288, 8192) == plain[12288:20480]


ARGON = ("--pbkdf-memory", "8192", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1")
CIPHERS = [
    ("aes-xts-plain64", 512, 512, ("--pbkdf", "argon2id", *ARGON)),
    ("aes-xts-plain64", 256, 4096, ("--pbkdf", "argon2i", *ARGON)),
    ("aes-xts-plain64", 512, 2048, None),
    ("aes-xts-plain", 512, 512, None),
    ("aes-cbc-essiv:sha256", 256, 512, None),
    ("aes-cbc-essiv:sha256", 128, 4096, None),
    ("aes-cbc-plain64", 192, 1024, None),
    ("aes-cbc-plain64be", 256, 512, None),
    ("aes-cbc-null", 256, 512, None),
    ("aes-ecb", 256, 512, None),
]


@pytest.mark.parametrize(("cipher", "bits", "sector", "derivation"), CIPHERS)
def test_luks2_as_cryptsetup_wrote_it(
    tmp_path: Path, cipher: str, bits: int, sector: int, derivation: tuple[str, ...] | None
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(PLAIN)
    options = ("--cipher", cipher, "--key-size", str(bits), "--sector-size", str(sector))
    if derivation is None:
        encrypt_luks2(disk, *options)
    else:
        encrypt_luks2(disk, *options, derivation=derivation)
    check(disk.read_bytes(), PLAIN)


@pytest.mark.parametrize("hash_name", ["sha1", "sha512", "ripemd160"])
def test_luks2_with_other_hashes(tmp_path: Path, hash_name: str) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(PLAIN)
    derivation = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", hash_name)
    encrypt_luks2(disk, derivation=derivation)
    content = disk.read_bytes()
    try:
        hashlib.new(hash_name)
    except ValueError:
        with pytest.raises(UnsupportedVolumeError, match=hash_name):
            opened(content)
    else:
        check(content, PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        ("--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha512"),
        ("--cipher", "aes-xts-plain", "--key-size", "256", "--hash", "sha1"),
        ("--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "sha256"),
        ("--cipher", "aes-cbc-plain64", "--key-size", "128"),
    ],
)
def test_luks1_with_a_header_of_cryptsetup(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "plain").write_bytes(PLAIN)
    encrypt_luks1(tmp_path / "plain", tmp_path / "disk", *options)
    check((tmp_path / "disk").read_bytes(), PLAIN)


def test_luks1_as_qemu_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(PLAIN)
    make_luks1_with_qemu(tmp_path / "plain", tmp_path / "disk")
    check((tmp_path / "disk").read_bytes(), PLAIN)


def test_the_compatibility_image_of_cryptsetup(shared_data: Path) -> None:
    """Its key is what cryptsetup says; we must come to the same, and to the same plain bytes."""
    require_tool("cryptsetup")
    folder = shared_data / "fs-images"
    cases = json.loads((folder / "expectations.json").read_text())["good"]
    case = next(case for case in cases if case["id"] == "luks1-cryptsetup-compat")
    content = lzma.decompress((folder / case["packed"]["disk.img"]).read_bytes())
    volume = opened(content, Secrets((case["passphrase"].encode(),)))
    assert volume.size == len(content) - 1032 * 512
    with pytest.raises(LockedError, match="none of the passwords"):
        opened(content, Secrets((b"wrong",)))


def test_a_header_without_its_data_is_refused(shared_data: Path) -> None:
    case = shared_data / "fs-images" / "images" / "luks2-utillinux.disk.img.xz"
    with pytest.raises(VolumeError):
        opened(lzma.decompress(case.read_bytes()), NO_SECRETS)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    disk = tmp_path_factory.mktemp("luks") / "disk"
    disk.write_bytes(PLAIN)
    encrypt_luks2(disk)
    return disk.read_bytes()


def test_a_locked_volume(volume: bytes) -> None:
    with pytest.raises(LockedError, match="--password-file"):
        opened(volume, NO_SECRETS)
    with pytest.raises(LockedError, match="none of the passwords"):
        opened(volume, Secrets((b"wrong", PASSWORD.upper().encode()), (b"neither",)))
    assert opened(volume, Secrets((b"wrong",), (PASSWORD.encode(),))).size
    assert opened(volume, Secrets((b"wrong", PASSWORD.encode()))).size


def test_several_slots_and_key_files(tmp_path: Path, volume: bytes) -> None:
    disk, key = tmp_path / "disk", tmp_path / "key"
    disk.write_bytes(volume)
    key.write_bytes(noise(3, 5000))
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    run("cryptsetup", "luksAddKey", "-q", *cheap, "--key-file", password_file(tmp_path), disk, key)
    content = disk.read_bytes()
    for secrets in (SECRETS, Secrets((), (key.read_bytes(),))):
        device = opened(content, secrets).device
        assert device is not None
        assert device.pread(0, 4096) == PLAIN[:4096]
    run("cryptsetup", "luksKillSlot", "-q", disk, "0")
    with pytest.raises(LockedError):
        opened(disk.read_bytes())
    run("cryptsetup", "erase", "-q", disk)
    with pytest.raises(VolumeError, match="erased"):
        opened(disk.read_bytes())


def test_a_damaged_primary_header_gives_way_to_the_copy(volume: bytes) -> None:
    for at in (4100, 448, 100):
        damaged = bytearray(volume)
        damaged[at] ^= 1
        check(bytes(damaged), PLAIN)
    damaged[0x4000 + 4100] ^= 1
    with pytest.raises(VolumeError, match="both copies"):
        opened(bytes(damaged))
    wiped = bytes(4096) + volume[4096:]
    check(wiped, PLAIN)


def test_an_older_copy_gives_way_to_the_newer(tmp_path: Path, volume: bytes) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(volume)
    run("cryptsetup", "config", disk, "--label", "newer")
    run("cryptsetup", "luksChangeKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
        "--key-file", password_file(tmp_path), disk, password_file(tmp_path, "another"))  # fmt: skip
    newer = disk.read_bytes()
    mixed = volume[:0x4000] + newer[0x4000:]
    device = opened(mixed, Secrets((b"another",))).device
    assert device is not None
    assert device.pread(0, 4096) == PLAIN[:4096]


def with_json(volume: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The volume with other metadata, and checksums that are right."""
    content = bytearray(volume)
    for start in (0, 0x4000):
        metadata = json.loads(content[start + 4096 : start + 0x4000].split(b"\0", 1)[0])
        change(metadata)
        content[start + 4096 : start + 0x4000] = json.dumps(metadata).encode().ljust(0x3000, b"\0")
        seal(content, start)
    return bytes(content)


def seal(content: bytearray, start: int) -> None:
    content[start + 448 : start + 512] = bytes(64)
    digest = hashlib.sha256(content[start : start + 0x4000]).digest()
    content[start + 448 : start + 480] = digest


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a hungry derivation": (
        lambda found: found["keyslots"]["0"]["kdf"].update(
            type="argon2id", time=4, memory=1 << 31, cpus=4, salt=base64.b64encode(bytes(32)).decode()
        ),
        "2147483648 KiB",
    ),
    "a slow derivation": (lambda found: found["keyslots"]["0"]["kdf"].update(iterations=1 << 31), "rounds"),
    "a slow digest": (lambda found: found["digests"]["0"].update(iterations=1 << 31), "rounds"),
    "an unknown derivation": (lambda found: found["keyslots"]["0"]["kdf"].update(type="scrypt"), "scrypt"),
    "an unknown hash": (lambda found: found["keyslots"]["0"]["af"].update(hash="md17"), "md17"),
    "many stripes": (lambda found: found["keyslots"]["0"]["af"].update(stripes=1 << 30), "stripes"),
    "a slot far away": (lambda found: found["keyslots"]["0"]["area"].update(offset=str(1 << 60)), "behind"),
    "another cipher": (
        lambda found: found["segments"]["0"].update(encryption="serpent-xts-plain64"),
        "serpent",
    ),
    "a segment far away": (
        lambda found: found["segments"]["0"].update(offset=str(1 << 60)),
        "behind|detached",
    ),
    "a detached header": (lambda found: found["segments"]["0"].update(offset=str(99 * MIB)), "detached"),
    "integrity": (
        lambda found: found["segments"]["0"].update(integrity={"type": "hmac(sha256)"}),
        "integrity",
    ),
    "a segment of another kind": (lambda found: found["segments"]["0"].update(type="hw-opal"), "hw-opal"),
    "two segments": (lambda found: found["segments"].update({"1": {"type": "linear"}}), "2 segments"),
    "an odd sector size": (lambda found: found["segments"]["0"].update(sector_size=513), "513"),
    "a requirement": (
        lambda found: found["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}),
        "reencrypt",
    ),
    "no segments": (lambda found: found.pop("segments"), "segments"),
    "a number in place of a text": (lambda found: found["segments"]["0"].update(offset=5), "offset"),
    "a negative offset": (lambda found: found["segments"]["0"].update(offset="-5"), "offset"),
    "a text in place of a table": (lambda found: found.update(keyslots="x"), "keyslots"),
    "an empty digest": (lambda found: found["digests"]["0"].update(digest=""), "digest of 0"),
    "a long digest": (
        lambda found: found["digests"]["0"].update(digest=base64.b64encode(bytes(1000)).decode()),
        "digest of 1000",
    ),
    "a hash that is no good": (
        lambda found: found["keyslots"]["0"]["kdf"].update(hash="shake_128"),
        "shake_128",
    ),
    "a salt that is no base64": (lambda found: found["digests"]["0"].update(salt="%"), "salt"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_make_no_sense(volume: bytes, case: str) -> None:
    change, expected = HOSTILE[case]
    with pytest.raises(VolumeError, match=expected):
        opened(with_json(volume, change))


@pytest.mark.parametrize("text", [b"[" * 12000, b"{", b"9" * 6000, b"[]", b"\xff", b""])
def test_metadata_that_is_no_json(volume: bytes, text: bytes) -> None:
    content = bytearray(volume)
    for start in (0, 0x4000):
        content[start + 4096 : start + 0x4000] = text.ljust(0x3000, b"\0")
        seal(content, start)
    with pytest.raises(VolumeError):
        opened(bytes(content))


def test_a_luks1_header_without_data(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(PLAIN)
    encrypt_luks1(tmp_path / "plain", tmp_path / "disk")
    content = bytearray((tmp_path / "disk").read_bytes())
    struct.pack_into(">I", content, 104, 0)
    with pytest.raises(UnsupportedVolumeError, match="another device"):
        opened(bytes(content))
    struct.pack_into(">I", content, 104, 1 << 31)
    with pytest.raises(MountfsError):
        opened(bytes(content))


def test_cryptsetup_agrees_on_the_key(tmp_path: Path, volume: bytes) -> None:
    """An independent way: the key that cryptsetup prints, and openssl to decipher one sector with it."""
    require_tool("openssl")
    disk = tmp_path / "disk"
    disk.write_bytes(PLAIN)
    encrypt_luks2(disk, "--cipher", "aes-cbc-plain64", "--key-size", "256", "--sector-size", "512")
    dumped = run(
        "cryptsetup", "luksDump", "--dump-volume-key", "-q", "--key-file", password_file(tmp_path), disk
    )
    key = "".join(dumped.split("MK dump:")[1].split())
    sector = 40
    stored = disk.read_bytes()[16 * MIB + sector * 512 :][:512]
    command = [
        "openssl",
        "enc",
        "-d",
        "-aes-256-cbc",
        "-nopad",
        "-K",
        key,
        "-iv",
        struct.pack("<QQ", sector, 0).hex(),
    ]
    plain = subprocess.run(command, input=stored, capture_output=True, check=True).stdout
    device = opened(disk.read_bytes()).device
    assert device is not None
    assert device.pread(sector * 512, 512) == plain == PLAIN[sector * 512 :][:512]


def test_a_key_of_equal_halves_is_refused() -> None:
    with pytest.raises(VolumeError, match="halves"):
        XtsSectors(bytes(64), 512, counted_vectors)
