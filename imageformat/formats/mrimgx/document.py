"""The ``$JSON`` of a file that is to be written, with every key that a reader may need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imageformat.formats.mrimgx.layout import DiskPlan, PartitionPlan

_TRACKS, _SECTORS = 255, 63


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What all files of a set have in common."""

    image_id: bytes
    compression: str
    aes: str
    """"none", or "aes-128" and so on."""
    iterations: int
    hmac: bytes
    created: int
    """Unix seconds."""
    guid: str
    host: str
    backup_type: str = "full"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What tells one file of a set from the others."""

    file_number: int
    index_file_position: int
    names: tuple[str, ...]
    """Of all files up to this one, by number."""
    split_file: bool = False
    increment_number: int = 0
    delta_index: bool = False


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """One disk: how it is laid out, and what it was called."""

    plan: DiskPlan
    number: int
    size: int
    model: str = ""
    serial: str = ""


def build_document(common: SetFacts, file: FileFacts, disks: Sequence[DiskFacts]) -> dict[str, object]:
    """Return all of ``$JSON`` for one file."""
    encryption: dict[str, object] = {"enable": False, "key_iterations": 0}
    if common.aes != "none":
        encryption = {
            "aes_type": common.aes,
            "enable": True,
            "hmac": common.hmac.hex(),
            "key_derivation": "pbkdf2",
            "key_iterations": common.iterations,
        }
    return {
        "_compression": {"compression_level": common.compression, "compression_method": "zstd"},
        "_encryption": encryption,
        "_header": {
            "backup_format": "partition",
            "backup_guid": common.guid,
            "backup_time": common.created,
            "backup_type": common.backup_type,
            "backupset_time": common.created,
            "delta_index": file.delta_index,
            "file_number": file.file_number,
            "imaged_disks_count": len(disks),
            "imageid": common.image_id.hex().upper(),
            "increment_number": file.increment_number,
            "index_file_position": file.index_file_position,
            "json_version": 1,
            "netbios_name": common.host,
            "split_file": file.split_file,
        },
        "disks": [_disk(disk, file) for disk in disks],
    }


def _disk(disk: DiskFacts, file: FileFacts) -> Mapping[str, object]:
    plan = disk.plan
    sector_size = plan.table.sector_size
    header: dict[str, object] = {
        "disk_format": plan.table.scheme if plan.table.scheme in {"gpt", "mbr"} else "unknown",
        "disk_number": disk.number,
        "disk_signature": plan.table.disk_id.upper(),
        "imaged_partition_count": len(plan.partitions),
    }
    if plan.boot_records:
        header["extended_partition_count"] = len(plan.boot_records)
        header["extended_partition_sector_offset"] = plan.extended_start
    return {
        "_descriptor": {
            "disk_description": disk.model,
            "disk_manufacturer": "",
            "disk_productid": disk.model,
            "disk_revisonno": "",
            "disk_serialno": disk.serial,
        },
        "_geometry": {
            "bytes_per_sector": sector_size,
            "cylinders": disk.size // (_TRACKS * _SECTORS * sector_size),
            "disk_size": disk.size,
            "media_type": "fixed_media",
            "sectors_per_track": _SECTORS,
            "tracks_per_cylinder": _TRACKS,
        },
        "_header": header,
        "partitions": [_partition(part, plan, file) for part in plan.partitions],
    }


def _partition(plan: PartitionPlan, disk: DiskPlan, file: FileFacts) -> Mapping[str, object]:
    partition, volume, sector_size = plan.partition, plan.volume, disk.table.sector_size
    is_mbr = disk.table.scheme == "mbr"
    file_system: dict[str, object] = {
        "bitlocker_state": "none",
        "drive_letter": 0,
        "end": plan.end - 1,
        "free_clusters": 0,
        "lcn0_file_number": file.file_number,
        "lcn0_offset": plan.first,
        "partition_index": plan.number,
        "sectors_per_cluster": volume.cluster_size // sector_size,
        "start": partition.offset,
        "total_clusters": volume.clusters,
        "type": volume.kind,
        "volume_guid": "",
        "volume_label": "",
    }
    if volume.mft_record_size:
        file_system["mft_offset"] = partition.offset + volume.mft_offset
        file_system["mft_record_size"] = volume.mft_record_size
    if volume.reserved:
        file_system["reserved_sectors_byte_length"] = volume.reserved
    return {
        "_file_system": file_system,
        "_geometry": {
            "boot_sector_offset": 0,
            "end": plan.end - 1,
            "length": partition.size,
            "start": partition.offset,
        },
        "_header": {
            "block_count": plan.block_count,
            "block_size": plan.block_size,
            "file_history": [
                {"file_name": name, "file_number": number} for number, name in enumerate(file.names)
            ],
            "file_history_count": len(file.names),
            "partition_file_offset": 0,
            "partition_number": plan.number,
        },
        "_partition_table_entry": {
            "active": partition.bootable,
            "boot_sector": partition.offset // sector_size,
            "end_cylinder": 0,
            "end_head": 0,
            "num_sectors": partition.size // sector_size,
            "partition_type": "logical" if is_mbr and plan.number > 3 else "primary",
            "start_cylinder": 0,
            "start_head": 0,
            "status": 0x80 if partition.bootable else 0,
            "type": int(partition.type_id, 16) if is_mbr else 7,
        },
    }
