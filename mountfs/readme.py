"""The notes that stand where files were expected: what it is, why it is so, what one can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.names import safe_text

if TYPE_CHECKING:
    from imageformat.partitions import PartitionTable
    from mountfs.volumes import Volume

_OPEN_HERE = """\
With its password in a file, it is shown as folders:

    mountfs ls IMAGE:{path} --password-file FILE

The same option works with mount, tree, cat, cp, info, verify and restore; --key-file takes a key file.

"""
_LUKS = """\
Without mountfs, it can be unlocked from its raw bytes, as root:

    cryptsetup open --readonly partition.img unlocked
    mount -o ro /dev/mapper/unlocked /mnt
"""
_BITLOCKER = """\
Without mountfs, it can be unlocked from its raw bytes, as root, with its password or recovery key:

    cryptsetup open --type bitlk --readonly partition.img unlocked
    mount -o ro /dev/mapper/unlocked /mnt
"""
_LVM = """\
Its logical volumes can be reached from its raw bytes, as root, once all parts of the volume group are
attached in the same way:

    losetup --find --read-only partition.img
    vgchange --activate y --readonly
"""
_RAID = """\
The array can be assembled from the raw bytes of its members, as root, each attached in the same way:

    losetup --find --read-only partition.img
    mdadm --assemble --scan --readonly
"""
_OTHER = """\
Where the system knows this file system, it can be mounted from its raw bytes, as root:

    mount -o ro,loop partition.img /mnt

Tools that repair or search file systems can be used on a copy of partition.img.
"""
_UNKNOWN = "Tools that search for lost file systems can be used on a copy of partition.img.\n"
_NO_FILES = "It holds no files; its raw bytes are in partition.img.\n"
_ADVICE = {
    "luks1": _OPEN_HERE + _LUKS,
    "luks2": _OPEN_HERE + _LUKS,
    "bitlocker": _OPEN_HERE + _BITLOCKER,
    "lvm2": _LVM,
    "mdraid": _RAID,
    "swap": _NO_FILES,
}


def volume_readme(volume: Volume, reason: str, *, has_bytes: bool = True) -> bytes:
    """Explain why a volume is shown as raw bytes, or, without those, as nothing else."""
    info, partition = volume.info, volume.partition
    facts = [("Volume", volume.path.decode("utf-8", "replace"))]
    if info is not None:
        facts += [("Type", info.type), ("Label", info.label), ("UUID", info.uuid), ("Note", info.note)]
    if partition is not None:
        facts += [("Partition", f"{partition.number}, {partition.type_name}"), ("Name", partition.name)]
    place = f" at byte {volume.offset} of the disk" if volume.offset is not None else ""
    facts += [("Place", f"{volume.size} bytes{place}")]
    why = f"Why: {safe_text(reason)}."
    if not has_bytes:
        return _text("This volume cannot be shown.", facts, why)
    advice = _ADVICE.get(info.type, _OTHER) if info is not None else _UNKNOWN
    return _text(
        "The files of this volume cannot be shown.",
        facts,
        why,
        "All of its bytes are in partition.img, beside this note.\n",
        advice.replace("{path}", safe_text(_numbers(volume))),
    )


def _numbers(volume: Volume) -> str:
    """Return the short way to a volume: ``2/1``."""
    names = (*volume.parents, volume.name)
    return "/".join(name.split(b"-", 1)[0].decode("utf-8", "replace") for name in names)


def disk_readme(table: PartitionTable, size: int, image_name: bytes) -> bytes:
    """Explain why a disk has no volumes."""
    facts = [("Disk", f"{size} bytes"), ("Table", table.scheme)]
    facts += [("Warning", warning) for warning in table.warnings]
    return _text(
        "No volume was found on this disk.",
        facts,
        "There is neither a partition nor a file system that is known here. The disk may be empty,\n"
        "encrypted as a whole, or of a kind that this version does not know.\n",
        f"All of its bytes are in {safe_text(image_name)}, beside this note.",
    )


def _text(title: str, facts: list[tuple[str, str]], *paragraphs: str) -> bytes:
    lines = [f"{name + ':':<11}{safe_text(value)}" for name, value in facts if value]
    return "\n".join((title, "", *lines, "", *paragraphs)).rstrip("\n").encode() + b"\n"
