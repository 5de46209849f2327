"""Opening a Macrium image as of its point in time: its chain, its disks, and what is known of it."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache
from imageformat.errors import (
    CorruptImageError,
    ImageError,
    UnsupportedFeatureError,
)
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats.mrimgx.blocks import BlockReader, Owner
from imageformat.formats.mrimgx.disk import Blocks, Bytes, MacriumDisk, Reserved
from imageformat.formats.mrimgx.index import BlockMap, file_numbers, open_index
from imageformat.formats.mrimgx.member import open_member
from imageformat.formats.mrimgx.model import MAX_DISK_SIZE
from imageformat.formats.mrimgx.sets import Folder
from imageformat.formats.mrimgx.unlock import unlock
from imageformat.layer import ImageType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageformat.formats.mrimgx.crypto import Cryptor
    from imageformat.formats.mrimgx.disk import Paint
    from imageformat.formats.mrimgx.index import Index
    from imageformat.formats.mrimgx.member import DiskLists, Member
    from imageformat.formats.mrimgx.model import DiskModel, Encryption, PartitionModel
    from imageformat.formats.mrimgx.sets import ChainMembers
    from imageformat.layer import ImageLayer, Opening

FORMAT = "mrimgx"
_CACHE_SIZE = 16 << 20
_UNIT = 1 << 16
"""Blocks of the device above: as the partitions have them, if that is a power of two."""
_MAX_UNIT = 1 << 20
_SIDE_FILE = ".metadata"


def open_mrimgx(opening: Opening) -> ImageLayer:
    """Open a file; see `ImageFormat.open`.

    Raises:
        UnsupportedFeatureError: of Reflect 8 or older, or encrypted without `cryptography` installed.
        LockedError: encrypted, and no password that was given is right.
        ParentMissingError, ParentMismatchError: files of its set are missing, or are not the right ones.
        PartOfImageError: a part of a split image that is not its last.
        IncompleteImageError, CorruptImageError
    """
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        if opening.name.lower().endswith(_SIDE_FILE):
            raise UnsupportedFeatureError(
                f"{opening.name}: a side file of Macrium Reflect, which holds no blocks"
            )
        image = _Opener(opening, stack).image()
        return ForeignLayer(opening.name, dataclasses.replace(image, close=stack.pop_all().close))


class _Opener:
    """What is found out about a file while it is opened."""

    def __init__(self, opening: Opening, stack: ExitStack) -> None:
        self._opening = opening
        self._stack = stack
        self._own = open_member(opening.device, opening.name)
        self._folder = Folder(self._own, opening.name.rsplit("/", 1)[-1], opening.siblings, stack)
        self._cache = BlockCache(_CACHE_SIZE)
        self._cryptors: dict[Encryption, Cryptor] = {}

    def image(self) -> ForeignImage:
        """Return the image with all its disks."""
        self._folder.refuse_part()
        self._cryptor(self._own)
        chain = self._folder.chain()
        members = tuple(dict.fromkeys((chain.base, *chain.deltas, self._own)))
        lists = {member.json_md5: self._lists(member) for member in members}
        maps: list[list[tuple[Index, BlockMap]]] = [
            [self._map(chain, lists, disk, part) for part in range(len(model.partitions))]
            for disk, model in enumerate(self._own.document.disks)
        ]
        owners = self._owners(maps)
        if not self._own.document.disks:
            raise CorruptImageError(f"{self._own.name}: holds no disk")
        disks = tuple(
            self._disk(number, lists[self._own.json_md5][number], maps[number], owners)
            for number in range(len(self._own.document.disks))
        )
        identity = b"".join(
            member.json_md5 + b"".join(part.proofs for part in lists[member.json_md5]) for member in members
        )
        own_indexes = [index for disk in maps for index, _ in disk]
        return _describe(self._own, chain, disks, identity, frozenset(owners), own_indexes)

    def _lists(self, member: Member) -> tuple[DiskLists, ...]:
        cryptor = self._cryptor(member)
        return member.lists(cryptor.decrypt_metadata if cryptor is not None else None)

    def _cryptor(self, member: Member) -> Cryptor | None:
        encryption = member.document.encryption
        if encryption is None:
            return None
        if encryption not in self._cryptors:
            image_id = member.document.header.image_id
            self._cryptors[encryption] = unlock(encryption, image_id, self._opening.secrets, member.name)
        return self._cryptors[encryption]

    def _map(
        self, chain: ChainMembers, lists: dict[bytes, tuple[DiskLists, ...]], disk: int, part: int
    ) -> tuple[Index, BlockMap]:
        """Return the opened file's own index of a partition, and the whole of it."""
        indexes = []
        for member in (chain.base, *chain.deltas):
            model = member.document.disks[disk].partitions[part]
            stored = lists[member.json_md5][disk].indexes[part]
            indexes.append(open_index(member, stored, _limit(model), self._cache))
        base = indexes[0].table
        if base is None:
            raise CorruptImageError(f"{chain.base.name}: its index is not complete")
        deltas = [index.delta for index in indexes[1:] if index.delta is not None]
        return indexes[-1], BlockMap(
            base, deltas, self._cache, frozenset().union(*(i.numbers for i in indexes))
        )

    def _owners(self, maps: Sequence[Sequence[tuple[Index, BlockMap]]]) -> dict[int, Owner]:
        """Return the file of every number that a stored block names."""
        named: set[int] = set()
        for index, blocks in (pair for disk in maps for pair in disk):
            numbers = blocks.numbers
            if not numbers <= self._own.document.header.owned:
                numbers = frozenset(blocks.file_numbers())
            named |= {*numbers, *file_numbers(index.reserved)}
        owners = {}
        for number in sorted(named):
            member = self._folder.owner(number)
            owners[number] = Owner(member, self._cryptor(member))
        return owners

    def _disk(
        self,
        number: int,
        lists: DiskLists,
        maps: Sequence[tuple[Index, BlockMap]],
        owners: dict[int, Owner],
    ) -> ForeignDisk:
        model = self._own.document.disks[number]
        size = self._size(number, maps)
        unit = _unit(model)
        paints: list[Paint] = [Bytes(0, lists.track0[:size])]
        for record in lists.boot_records:
            if record.offset + len(record.sector) > size:
                raise CorruptImageError(f"{self._own.name}: a boot record lies behind the end of its disk")
            paints.append(Bytes(record.offset, record.sector))
        spans = []
        for partition, (index, blocks) in zip(model.partitions, maps, strict=True):
            end = _end(partition, blocks)
            spans.append((partition.start, end))
            reader = BlockReader(owners, model.number, partition.number, self._own.name)
            try:
                paints += self._partition(partition, end, index, blocks, reader, unit)
            except ImageError as error:
                raise type(error)(f"{self._own.name}: {error}") from error
        device = MacriumDisk(size, unit, paints, spans)
        name = "disk" if len(self._own.document.disks) == 1 else f"disk{number}"
        return ForeignDisk(device, model.sector_size, name)

    def _partition(
        self,
        partition: PartitionModel,
        end: int,
        index: Index,
        blocks: BlockMap,
        reader: BlockReader,
        unit: int,
    ) -> list[Paint]:
        paints: list[Paint] = []
        if partition.reserved_length:
            if partition.reserved_start + partition.reserved_length > end:
                raise CorruptImageError("a reserved area is longer than its partition")
            paints.append(
                Reserved(
                    partition.reserved_start, partition.reserved_length, index.reserved, reader, self._cache
                )
            )
        whole = partition.first % unit == 0 and unit % partition.block_size == 0
        cache = None if whole else self._cache
        paints.append(Blocks(partition.first, end, partition.block_size, blocks, reader, cache))
        return paints

    def _size(self, number: int, maps: Sequence[tuple[Index, BlockMap]]) -> int:
        """Return the size of a disk: what any file of the set says, and at least all its partitions."""
        own = self._own.document
        members = [self._own]
        if own.header.increment_number:
            members += self._folder.peers()
        sizes = [
            member.document.disks[number].size for member in members if number < len(member.document.disks)
        ]
        ends = [
            _end(partition, blocks)
            for partition, (_, blocks) in zip(own.disks[number].partitions, maps, strict=True)
        ]
        size = max(*sizes, *ends, 0)
        if not 0 < size <= MAX_DISK_SIZE:
            raise CorruptImageError(f"{self._own.name}: has a disk of {size} bytes")
        return size


def _limit(partition: PartitionModel) -> int:
    """Return how many blocks a partition can have."""
    if not partition.length:
        return 1 << 32
    return max(0, -(-(partition.start + partition.length - partition.first) // partition.block_size))


def _end(partition: PartitionModel, blocks: BlockMap) -> int:
    if partition.length:
        return partition.start + partition.length
    return partition.first + blocks.count * partition.block_size


def _unit(disk: DiskModel) -> int:
    """Return the unit in which a disk is read: the size of its biggest blocks if that serves."""
    biggest = max((partition.block_size for partition in disk.partitions), default=_UNIT)
    serves = biggest & (biggest - 1) == 0 and 4096 <= biggest <= _MAX_UNIT
    return biggest if serves else _UNIT


def _type(own: Member, used: frozenset[int]) -> ImageType:
    """Tell how a file relates to the others: by what its blocks need, not by the job that made it."""
    header = own.document.header
    if header.delta_index:
        return ImageType.INCREMENTAL
    if not header.increment_number or used <= header.owned:
        return ImageType.FULL
    return ImageType.DIFFERENTIAL if header.backup_type == "diff" else ImageType.INCREMENTAL


def _counts(own: Member, indexes: Sequence[Index]) -> dict[str, int]:
    """Tell how many blocks a file holds itself, and how many of a complete index nobody does."""
    owned = own.document.header.owned
    partitions = [partition for disk in own.document.disks for partition in disk.partitions]
    data = [sum(count for number, count in index.numbers.items() if number in owned) for index in indexes]
    unused = [index.table.count - index.numbers.total() for index in indexes if index.table is not None]
    return {
        "data_blocks": sum(data),
        "unused_blocks": sum(unused),
        "raw_bytes": sum(
            count * partition.block_size for count, partition in zip(data, partitions, strict=True)
        ),
        "stored_bytes": own.document.header.index_file_position,
    }


def _describe(
    own: Member,
    chain: ChainMembers,
    disks: tuple[ForeignDisk, ...],
    identity: bytes,
    used: frozenset[int],
    indexes: Sequence[Index],
) -> ForeignImage:
    document, header = own.document, own.document.header
    first = document.disks[0]
    labels = [part.label for disk in document.disks for part in disk.partitions if part.label]
    parent = next((member.name for member in reversed((chain.base, *chain.deltas)) if member is not own), "")
    details = {
        "source": ", ".join(f"disk {disk.number}" for disk in document.disks),
        "host": header.host,
        "model": " ".join(first.description.split()),
        "serial": first.serial.strip(),
        "label": ", ".join(labels),
        "parent": parent,
        "image_id": header.image_id.hex().upper(),
        "file_number": header.file_number,
        "backup_format": header.backup_format,
        "compression": document.compression,
        "encryption": f"aes-{8 * document.encryption.key_length}" if document.encryption else "",
        **_counts(own, indexes),
    }
    return ForeignImage(
        format=FORMAT,
        disks=disks,
        identity=identity,
        created_ns=header.backup_time * 10**9,
        stored_size=own.device.size,
        set_identity=header.image_id,
        type=_type(own, used),
        number=header.increment_number + 1,
        details={key: value for key, value in details.items() if value != ""},
    )
