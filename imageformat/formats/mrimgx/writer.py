"""Writing disks as a full Macrium image. Experimental: not yet tried with Reflect X itself."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imageformat.cache import BlockCache
from imageformat.errors import UsageError, VerificationError
from imageformat.extent import NOT_STORED
from imageformat.formats.mrimgx.document import DiskFacts, FileFacts, SetFacts, build_document
from imageformat.formats.mrimgx.emit import ContainerWriter, DiskMetadata, IndexPages, encode_block
from imageformat.formats.mrimgx.index import open_index
from imageformat.formats.mrimgx.layout import left_out, plan_disk
from imageformat.formats.mrimgx.member import open_member
from imageformat.formats.mrimgx.model import COMPRESSION_LEVELS, KEY_LENGTHS
from imageformat.formats.mrimgx.structs import RESERVED_SEGMENT, pack_entry
from imageformat.formats.mrimgx.unlock import derive_key, key_check, make_cryptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imageformat.device import BlockDevice
    from imageformat.formats.mrimgx.crypto import Cryptor
    from imageformat.formats.mrimgx.emit import EncodedBlock
    from imageformat.formats.mrimgx.layout import PartitionPlan
    from imageformat.formats.mrimgx.structs import Entry
    from imageformat.storage import ObjectWriter, Storage

EXPERIMENTAL = (
    "images for Macrium Reflect X are experimental: keep the source until Reflect X has restored one"
)
_BATCH = 2 << 20
"""Bytes that are read and encoded together."""
_MAX_FILES = 0xFFFF


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """A disk that is to be written."""

    device: BlockDevice
    sector_size: int = 512
    number: int = 0
    """As its system counts; unique in the image."""
    model: str = ""
    serial: str = ""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How an image is written.

    Raises:
        UsageError: a value that the format does not know.
    """

    compression: str = "medium"
    """"none", "medium" or "high"."""
    password: bytes = b""
    """Encrypts when it is not empty."""
    aes: str = "aes-256"
    iterations: int = 600_000
    split_size: int = 0
    """A new file is begun before one would hold more bytes of blocks; 0: never."""
    block_size: int = 1 << 16
    created_ns: int = 0
    """When the picture was taken: UTC."""
    host: str = ""

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSION_LEVELS or self.aes not in KEY_LENGTHS:
            raise UsageError(f"compression is one of {COMPRESSION_LEVELS}, aes one of {tuple(KEY_LENGTHS)}")
        if self.block_size % 4096 or not 4096 <= self.block_size <= 1 << 20:
            raise UsageError("the block size is a multiple of 4096, at most 1 MiB")
        if self.split_size < 0 or self.iterations <= 0:
            raise UsageError("sizes and counts are positive")


class LeftOut(NamedTuple):
    """Bytes of a disk that are not zero and that the format has no place for."""

    disk: int
    """Position among the disks."""
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    keys: tuple[str, ...]
    """Of the files, in order; the last is the one to be opened."""
    left_out: tuple[LeftOut, ...]
    """Reads as zeros in the image: usually the backup GPT alone."""


def write_mrimgx(
    storage: Storage,
    key: str,
    disks: Sequence[SourceDisk],
    options: WriteOptions,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Written:
    """Write disks as one full image, in one file or, when split, in several named after ``key``.

    Nothing is there under its name before all of it is durable, and the file that makes the others an
    image comes last. ``report`` is told how many bytes of the disks are done, and of how many. One thread
    calls it; the disks are read by that thread.

    Raises:
        UsageError: the disks cannot be stored in this format.
        UnsupportedFeatureError: a password was given and `cryptography` is not installed.
        DestinationError: the storage fails, or a file of that name is there.
        MountfsError: a disk cannot be read.
    """
    if not disks or len({disk.number for disk in disks}) != len(disks):
        raise UsageError("an image holds at least one disk, and no two of one number")
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))))
        return _Writer(storage, key, disks, options, report, pool, stack).write()


class _Writer:
    """One image while it is written."""

    def __init__(
        self,
        storage: Storage,
        key: str,
        disks: Sequence[SourceDisk],
        options: WriteOptions,
        report: Callable[[int, int], None],
        pool: ThreadPoolExecutor,
        stack: ExitStack,
    ) -> None:
        self._storage = storage
        self._key = key
        self._options = options
        self._report = report
        self._pool = pool
        self._stack = stack
        self._disks = disks
        self._facts = tuple(
            DiskFacts(
                plan_disk(disk.device, disk.sector_size, options.block_size),
                disk.number,
                disk.device.size,
                disk.model,
                disk.serial,
            )
            for disk in disks
        )
        self._common, self._cryptor = _common(options, key)
        self._files: list[tuple[str, ObjectWriter]] = []
        self._file = self._begin()
        self._total = sum(part.partition.size for disk in self._facts for part in disk.plan.partitions)
        self._done = 0

    def write(self) -> Written:
        """Write, prove and publish everything."""
        metadata = [
            DiskMetadata(
                facts.plan.track0,
                facts.plan.boot_records,
                [self._partition(disk.device, disk.number, part) for part in facts.plan.partitions],
            )
            for disk, facts in zip(self._disks, self._facts, strict=True)
        ]
        lost = tuple(
            LeftOut(position, *place)
            for position, (disk, facts) in enumerate(zip(self._disks, self._facts, strict=True))
            for place in left_out(disk.device, facts.plan)
        )
        self._finish(metadata)
        self._publish()
        return Written(tuple(key for key, _ in self._files), lost)

    def _begin(self) -> ContainerWriter:
        """Start the next file of the image."""
        number = len(self._files)
        if number > _MAX_FILES:
            raise UsageError("the image would have more than 65536 files; split it into bigger ones")
        key = _part_key(self._key, number) if self._options.split_size else self._key
        target = self._storage.create(key)
        self._stack.callback(target.abort)
        self._files.append((key, target))
        return ContainerWriter(target, number, self._options.compression)

    def _finish(self, metadata: Sequence[DiskMetadata]) -> None:
        """End the current file; without metadata it is a part that others follow."""
        facts = FileFacts(
            self._file.file_number,
            self._file.end_of_data(),
            tuple(key.rsplit("/", 1)[-1] for key, _ in self._files),
            split_file=not metadata,
        )
        self._file.finish(build_document(self._common, facts, self._facts), metadata)

    def _partition(self, device: BlockDevice, disk: int, plan: PartitionPlan) -> IndexPages:
        """Store the reserved area and the used blocks of a partition."""
        index = IndexPages(plan.block_count)
        start, end = plan.partition.offset, plan.first
        for offset in range(start, end, RESERVED_SEGMENT):
            segment = (device.pread(offset, min(RESERVED_SEGMENT, end - offset)),)
            numbers = (len(index.reserved),)
            index.reserved += [pack_entry(entry) for entry in self._store(segment, numbers, disk, plan)]
        for low, high in _used_runs(device, plan):
            data = device.pread(plan.first + low * plan.block_size, _length(plan, low, high))
            blocks = [data[at : at + plan.block_size] for at in range(0, len(data), plan.block_size)]
            used = [number for number, block in enumerate(blocks, low) if block.count(0) != len(block)]
            entries = self._store([blocks[number - low] for number in used], used, disk, plan)
            for number, entry in zip(used, entries, strict=True):
                index.put(number, entry)
            self._report(self._done + min(high * plan.block_size, plan.partition.size), self._total)
        self._done += plan.partition.size
        self._report(self._done, self._total)
        return index

    def _store(
        self, blocks: Sequence[bytes], numbers: Sequence[int], disk: int, plan: PartitionPlan
    ) -> Iterable[Entry]:
        """Encode blocks side by side and append them in order."""
        encode = partial(_encode, self._options.compression, self._cryptor, disk, plan.number)
        for block in self._pool.map(encode, blocks, numbers):
            limit = self._options.split_size
            position = self._file.target.position
            if limit and position and position + len(block.stored) > limit:
                self._finish(())
                self._file = self._begin()
            yield self._file.append(block)

    def _publish(self) -> None:
        """Make all files visible, the one that makes them an image last; or none of them."""
        published: list[str] = []
        try:
            for number, (key, target) in enumerate(self._files):
                is_last = number == len(self._files) - 1
                target.commit(partial(_prove, key=key, number=number, is_last=is_last))
                published.append(key)
        except BaseException:
            for key in published:
                self._storage.delete(key)
            raise


def _encode(
    compression: str, cryptor: Cryptor | None, disk: int, partition: int, block: bytes, number: int
) -> EncodedBlock:
    return encode_block(block, compression, cryptor, disk, partition, number)


def _common(options: WriteOptions, key: str) -> tuple[SetFacts, Cryptor | None]:
    """Choose the identity of the set, and make its cipher."""
    image_id = os.urandom(8)
    cryptor, check, aes = None, b"", "none"
    if options.password:
        derived = derive_key(options.password, image_id, options.iterations)
        aes, check = options.aes, key_check(derived)
        cryptor = make_cryptor(image_id, derived, KEY_LENGTHS[aes], key)
    facts = SetFacts(
        image_id,
        options.compression,
        aes,
        options.iterations if cryptor is not None else 0,
        check,
        options.created_ns // 10**9,
        str(uuid.uuid4()),
        options.host,
    )
    return facts, cryptor


def _part_key(key: str, number: int) -> str:
    stem, dot, suffix = key.rpartition(".")
    return f"{stem}-00-{number:02}{dot}{suffix}" if dot else f"{key}-00-{number:02}"


def _length(plan: PartitionPlan, low: int, high: int) -> int:
    return min(high * plan.block_size, plan.end - plan.first) - low * plan.block_size


def _used_runs(device: BlockDevice, plan: PartitionPlan) -> Iterator[tuple[int, int]]:
    """Yield first and end block of what may hold data; each block once, a few at a time."""
    step = max(1, _BATCH // plan.block_size)
    reached = 0
    for extent in device.extents(plan.first, plan.end - plan.first):
        if extent.kind in NOT_STORED:
            continue
        low = max(reached, (extent.offset - plan.first) // plan.block_size)
        reached = max(reached, -(-(extent.end - plan.first) // plan.block_size))
        for start in range(low, reached, step):
            yield start, min(start + step, reached)


def _prove(device: BlockDevice, *, key: str, number: int, is_last: bool) -> None:
    """Read back what makes a file one of its image."""
    member = open_member(device, key)
    header = member.document.header
    if header.file_number != number or header.split_file is is_last:
        raise VerificationError(f"{key}: does not read back as written; the destination is failing")
    if is_last:
        for disk, lists in zip(member.document.disks, member.lists(None), strict=True):
            for part, stored in zip(disk.partitions, lists.indexes, strict=True):
                open_index(member, stored, part.block_count, BlockCache(0))
