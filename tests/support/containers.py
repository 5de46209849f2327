"""Makes encrypted volumes and volume groups with the tools of the trade: cryptsetup, qemu-img, lvm2."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from support.kernel import loop_device
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MIB = 1 << 20
PASSWORD = "correct horse"
_CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
_LVM_CONFIG = 'devices{{filter=[{0},"r|.*|"]}} backup{{backup=0 archive=0}}'


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    """A file with a password and no line break."""
    path = folder / f"password-{len(password)}"
    path.write_text(password)
    return path


def encrypt_luks2(path: Path, *options: str, derivation: Sequence[str] = _CHEAP) -> None:
    """Make a LUKS2 volume of a file, in place: its bytes come to lie behind 16 MiB of header."""
    require_tool("cryptsetup")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 * MIB)
    run(
        *("cryptsetup", "reencrypt", "--encrypt", "--type", "luks2", "--batch-mode"),
        *("--reduce-device-size", "32M", "--key-file", password_file(path.parent), *derivation, *options),
        path,
    )


def encrypt_luks1(source: Path, target: Path, *options: str) -> None:
    """Make a LUKS1 volume that holds the bytes of a file: cryptsetup makes the header, qemu-img enciphers."""
    require_tool("cryptsetup", "qemu-img")
    target.write_bytes(b"")
    os.truncate(target, source.stat().st_size + 4 * MIB)
    run(
        *("cryptsetup", "luksFormat", "--type", "luks1", "--batch-mode", "--pbkdf-force-iterations", "1000"),
        *(*options, target, password_file(target.parent)),
    )
    run(
        *("qemu-img", "convert", "-n", "-f", "raw", "--object", f"secret,id=s,data={PASSWORD}"),
        *("--target-image-opts", source, f"driver=luks,key-secret=s,file.filename={target}"),
    )


def make_luks1_with_qemu(source: Path, target: Path, *, attempts: int = 10) -> None:
    """Make a LUKS1 volume with nothing but qemu-img, which measures its own speed and may fail to."""
    require_tool("qemu-img")
    for attempt in range(attempts):
        try:
            run(
                *("qemu-img", "convert", "-f", "raw", "-O", "luks"),
                *("--object", f"secret,id=s,data={PASSWORD}"),
                *("-o", "key-secret=s,iter-time=20", source, target),
            )
        except RuntimeError as error:
            if "CPU usage" not in str(error) or attempt == attempts - 1:
                raise
        else:
            return


class Piece(NamedTuple):
    """A run of extents of a logical volume, as lvs lists it."""

    start: int
    """Byte of the logical volume."""
    device: int
    """Which of the physical volumes."""
    offset: int
    size: int


class Group(NamedTuple):
    """An open volume group on files; ``call`` runs a tool of lvm2."""

    devices: tuple[str, ...]

    def call(self, tool: str, *arguments: str) -> str:
        """Run a tool of lvm2 that sees nothing else of this machine and activates nothing."""
        names = ",".join(f'"a|^{device}$|"' for device in self.devices)
        config = _LVM_CONFIG.format(names)
        return run(tool, "--driverloaded", "n", "--config", config, *arguments)

    def create(self, name: str, extents: int, *options: str) -> None:
        """Make a logical volume without touching what lies in it."""
        self.call("lvcreate", "-an", "-Zn", "-Wn", "-y", "-l", str(extents), "-n", name, "vg0", *options)

    def pieces(self, name: str, extent: int = MIB) -> list[Piece]:
        """Where lvs says that a linear volume lies; data begins at the first extent, 1 MiB into a device."""
        rows = json.loads(
            self.call("lvs", "--reportformat", "json", "-o", "seg_start_pe,seg_pe_ranges", f"vg0/{name}")
        )["report"][0]["lv"]
        found = []
        for row in rows:
            device, _, numbers = row["seg_pe_ranges"].rpartition(":")
            first, last = map(int, numbers.split("-"))
            offset = MIB + first * extent
            size = (last - first + 1) * extent
            found.append(Piece(int(row["seg_start_pe"]) * extent, self.devices.index(device), offset, size))
        return sorted(found)


@contextlib.contextmanager
def volume_group(*paths: Path, extent: str = "1M") -> Iterator[Group]:
    """Make the volume group vg0 over files; they hold it when this ends."""
    require_root()
    require_tool("pvcreate", "vgcreate", "lvcreate", "lvs")
    with contextlib.ExitStack() as stack:
        group = Group(tuple(stack.enter_context(loop_device(path)) for path in paths))
        group.call("pvcreate", "-ff", "-y", *group.devices)
        group.call("vgcreate", "-s", extent, "vg0", *group.devices)
        yield group


def write_pieces(paths: Sequence[Path], pieces: Sequence[Piece], content: bytes) -> None:
    """Write the bytes of a logical volume to where they lie."""
    for piece in pieces:
        with paths[piece.device].open("r+b") as file:
            file.seek(piece.offset)
            file.write(content[piece.start : piece.start + piece.size])
