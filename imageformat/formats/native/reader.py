"""Reading one native image file, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from imageformat.codec import Codec, decode, decode_delta, digest
from imageformat.device import check_range
from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    MountfsError,
    UnsupportedFeatureError,
)
from imageformat.formats.native.index import (
    EMPTY_TOP,
    Geometry,
    ResolvedIndex,
    has_legal_states,
    logical_root,
    page_digest,
    uniform_digest,
)
from imageformat.formats.native.lookup import FILLS, index_pieces
from imageformat.formats.native.proof import index_faults
from imageformat.formats.native.structs import (
    DIRECTORY_RECORD_SIZE,
    EXCLUDED_FILES,
    FOOTER_SIZE,
    FRAME_HEADER_SIZE,
    FRAME_MAGIC,
    HEADER_SIZE,
    MAGIC,
    MAX_BLOCK_SIZE,
    NO_UUID,
    RECORD_SIZE,
    Footer,
    FrameHeader,
    FrameKind,
    Header,
    Record,
    State,
    fill_record,
    page_number,
    peek_frame,
    unpack_footer,
    unpack_frame,
    unpack_header,
    unpack_record,
)
from imageformat.layer import Ancestry, BlockRef, DiskInfo, ImageInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer, LoadBlock, Piece

_MAX_GAP = 64 << 10
_MAX_RUN = 4 << 20
_SCAN_WINDOW = 1 << 20


def probe(device: BlockDevice) -> bool:
    """Tell whether the file starts like a native image."""
    return device.size >= len(MAGIC) and device.pread(0, len(MAGIC)) == MAGIC


def open_native(device: BlockDevice, name: str, cache: BlockCache) -> NativeLayer:
    """Open an image: header and footer are read and proven, nothing else.

    Raises:
        IncompleteImageError, CorruptImageError, UnsupportedFeatureError
    """
    try:
        header_bytes = device.pread(0, min(HEADER_SIZE, device.size))
        header = unpack_header(header_bytes, name)
        if device.size < HEADER_SIZE + FOOTER_SIZE:
            raise IncompleteImageError(f"{name}: only {device.size} bytes, the backup never finished")
        footer = unpack_footer(device.pread(device.size - FOOTER_SIZE, FOOTER_SIZE), device.size, name)
        return NativeLayer(device, name, cache, header, footer, digest(header_bytes))
    except BaseException:
        device.close()
        raise


class _Wanted(NamedTuple):
    """What a frame must be; an empty digest trusts the frame's own."""

    kind: int
    number: int
    size: int
    digest: bytes


class _Difference(NamedTuple):
    """A block that is stored as what differs from an older one."""

    header: FrameHeader
    older: BlockRef
    packed: memoryview


class NativeLayer:
    """One opened native image. Any number of threads may call it at once. Source: docs/format.md."""

    def __init__(
        self,
        device: BlockDevice,
        name: str,
        cache: BlockCache,
        header: Header,
        footer: Footer,
        header_digest: bytes,
    ) -> None:
        self.name = name
        self.header = header
        self.footer = footer
        self.geometry = Geometry(header.disk_size, header.block_size, header.page_bits)
        self._device = device
        self._cache = cache
        self._id = self.cache_key = header.image_id.bytes
        self._alone = ResolvedIndex(self.geometry, footer.top, self._holder)
        self._linked: tuple[Callable[[int], ImageLayer], ResolvedIndex] | None = None
        self._check_footer(header_digest)
        self.info = self._describe()

    def _check_footer(self, header_digest: bytes) -> None:
        footer, geometry = self.footer, self.geometry
        top = unpack_record(footer.top, 0)
        if footer.image_id != self.header.image_id or footer.header_digest != header_digest:
            raise CorruptImageError(f"{self.name}: header and footer belong to different images")
        if footer.height != geometry.height or footer.root != logical_root(
            geometry, footer.top[RECORD_SIZE:]
        ):
            raise CorruptImageError(f"{self.name}: the footer contradicts the header")
        if not geometry.blocks:
            legal = footer.top == EMPTY_TOP
        elif top.state in FILLS:
            blocks, bits = geometry.blocks, geometry.page_bits
            logical = uniform_digest(geometry.height - 1, blocks, bits, top.state)
            legal = footer.top == fill_record(State(top.state), top.layer) + logical
            legal = legal and self._is_legal(footer.top, 1)
        else:
            legal = top.state == State.PAGE
        if not legal or top.layer > self.header.depth:
            raise CorruptImageError(f"{self.name}: the footer's top record is illegal")
        table = footer.ancestors_offset, footer.ancestors_length
        if (self.header.depth > 0) != (table != (0, 0)):
            raise CorruptImageError(f"{self.name}: the ancestor table does not fit the chain")

    def _describe(self) -> ImageInfo:
        header, counts = self.header, self.footer.counts
        has_parent = header.parent_id != NO_UUID
        return ImageInfo(
            format="mfi",
            id=header.image_id,
            set_id=header.set_id,
            type=header.type,
            number=header.number,
            created_ns=header.created_ns,
            disks=(DiskInfo(header.disk_size, header.block_size, header.sector_size),),
            root=self.footer.root,
            parent_id=header.parent_id if has_parent else None,
            parent_root=header.parent_root if has_parent else None,
            depth=header.depth,
            stored_size=self.footer.file_size,
            details={
                **self._origin(),
                "finished_ns": self.footer.finished_ns,
                "data_blocks": counts.data_blocks,
                "zero_blocks": counts.zero_blocks,
                "unused_blocks": counts.unused_blocks,
                "bad_blocks": counts.bad_blocks,
                "excluded_blocks": counts.excluded_blocks,
                "raw_bytes": counts.raw_bytes,
                "stored_bytes": counts.stored_bytes,
            },
        )

    def _origin(self) -> Mapping[str, object]:
        try:
            return msgspec.json.decode(self.header.origin, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptImageError(f"{self.name}: the ORIGIN record is not JSON: {error}") from error

    def ancestors(self) -> Ancestry:
        """See `ImageLayer.ancestors`."""
        if not self.header.depth:
            return Ancestry()
        size = self.header.depth * Ancestry.ENTRY_SIZE
        record = Record(b"", self.footer.ancestors_offset, self.footer.ancestors_length, 0, 0)
        table = Ancestry(self._read_frame(record, FrameKind.ANCESTORS, 0, size, "the ancestor table"))
        if table[-1] != (self.header.parent_id, self.header.parent_root):
            raise CorruptImageError(f"{self.name}: the ancestor table does not end with the parent")
        return table

    def page(self, record: bytes, level: int, page: int, size: int) -> bytes:
        """See `PageHolder.page`; from the cache if it is there. The image's own records are proven legal."""
        return self._cache.get(
            (self._id, record, level, page, size), lambda: self._load_page(record, level, page, size)
        )

    def _load_page(self, record: bytes, level: int, page: int, size: int) -> bytes:
        what = f"index page {page} of level {level}"
        number = page_number(level, page)
        raw = self._read_frame(unpack_record(record, 0), FrameKind.PAGE, number, size, what)
        if page_digest(raw, level) != record[RECORD_SIZE:]:
            raise CorruptImageError(f"{self.name}: {what} is not what the root names")
        if not self._is_legal(raw, level):
            raise CorruptImageError(f"{self.name}: {what} has an illegal record")
        return raw

    def _is_legal(self, raw: bytes, level: int) -> bool:
        excludes = bool(self.header.incompatible & EXCLUDED_FILES)
        return has_legal_states(raw, level, self.header.depth, excludes=excludes)

    def _read_frame(self, record: Record, kind: FrameKind, number: int, size: int, what: str) -> bytes:
        where = f"{self.name}: {what} at file offset {record.offset} is damaged"
        self._check_place(record.offset, record.length, where)
        stored = self._device.pread(record.offset, record.length)
        return self._decode(stored, _Wanted(kind, number, size, record.digest), where)

    def _check_place(self, offset: int, length: int, where: str) -> None:
        longest = self.header.block_size + (DIRECTORY_RECORD_SIZE << self.header.page_bits)
        longest = FRAME_HEADER_SIZE + max(longest, self.header.depth * Ancestry.ENTRY_SIZE)
        if offset < HEADER_SIZE or length > longest or offset + length > self.footer.file_size - FOOTER_SIZE:
            raise CorruptImageError(f"{where}: it would lie outside the file")

    def _decode(self, stored: bytes, frame: _Wanted, where: str) -> bytes:
        """Prove and decode one frame that is no difference."""
        with _Located(where):
            header, payload = self._prove_stored(stored, frame)
            return _prove_decoded(decode(header.codec, payload, frame.size), header)

    def _prove_stored(self, stored: bytes | memoryview, frame: _Wanted) -> tuple[FrameHeader, memoryview]:
        header, payload = unpack_frame(stored)
        if (header.kind, header.number, header.raw_length) != frame[:3]:
            raise CorruptImageError("another frame stands there")
        if header.image_id != self._id or header.digest != (frame.digest or header.digest):
            raise CorruptImageError("a frame of other content stands there")
        return header, payload

    def pieces(
        self,
        disk: int,
        offset: int,
        size: int,
        ancestor: Callable[[int], ImageLayer] | None = None,
    ) -> Iterator[Piece]:
        """See `ImageLayer.pieces`."""
        if disk != 0:
            raise CorruptImageError(f"{self.name}: has one disk, not {disk + 1}")
        check_range(self.geometry.size, offset, size)
        index = self._alone if ancestor is None else self._resolved(ancestor)
        return index_pieces(index, self.name, offset, size)

    def _resolved(self, ancestor: Callable[[int], ImageLayer]) -> ResolvedIndex:
        """Return the index across the chain; the one of the chain that asked last is kept."""
        known = self._linked
        if known is None or known[0] != ancestor:
            known = self._linked = ancestor, resolved_index(self, ancestor)
        return known[1]

    def _holder(self, depth: int) -> NativeLayer | None:
        return self if depth == self.header.depth else None

    def load(self, refs: Sequence[BlockRef], reference: LoadBlock) -> tuple[bytes, ...]:
        """See `ImageLayer.load`."""
        blocks = []
        for ref, frame in self._stored(refs):
            found = self._decode_block(ref, frame)
            if not isinstance(found, bytes):
                base = reference(found.older)
                with _Located(self._where(ref)):
                    found = _prove_decoded(decode_delta(found.packed, ref.raw_length, base), found.header)
            blocks.append(found)
        return tuple(blocks)

    def load_stored(self, ref: BlockRef) -> bytes | BlockRef:
        """Return a block, or the older one that it is stored as a difference from.

        Raises:
            CorruptImageError: the frame is damaged.
        """
        ((_, frame),) = self._stored((ref,))
        found = self._decode_block(ref, frame)
        return found if isinstance(found, bytes) else found.older

    def frame(self, ref: BlockRef) -> tuple[FrameHeader, memoryview]:
        """Return the frame of a block as it is stored: proven, but not decoded.

        Raises:
            CorruptImageError: it is damaged.
        """
        ((_, stored),) = self._stored((ref,))
        with _Located(self._where(ref)):
            return self._prove_stored(stored, _Wanted(FrameKind.BLOCK, ref.block, ref.raw_length, ref.digest))

    def _stored(self, refs: Sequence[BlockRef]) -> Iterator[tuple[BlockRef, memoryview]]:
        """Read frames, one range read per run of neighbours."""
        position = 0
        while position < len(refs):
            run = refs[position : position + _run_length(refs, position)]
            for ref in run:
                self._check_place(ref.offset, ref.length, self._where(ref))
            start = run[0].offset
            stored = memoryview(self._device.pread(start, run[-1].offset + run[-1].length - start))
            for ref in run:
                yield ref, stored[ref.offset - start : ref.offset - start + ref.length]
            position += len(run)

    def _decode_block(self, ref: BlockRef, stored: memoryview) -> bytes | _Difference:
        with _Located(self._where(ref)):
            wanted = _Wanted(FrameKind.BLOCK, ref.block, ref.raw_length, ref.digest)
            header, payload = self._prove_stored(stored, wanted)
            if header.codec != Codec.DELTA:
                return _prove_decoded(decode(header.codec, payload, ref.raw_length), header)
            if len(payload) <= RECORD_SIZE:
                raise CorruptImageError("the difference is shorter than what it names")
            base = unpack_record(bytes(payload[:RECORD_SIZE]), 0)
            if base.state != State.DATA or base.layer >= self.header.depth:
                raise CorruptImageError("the difference stands on something that is not older")
            older = ref._replace(layer=base.layer, offset=base.offset, length=base.length, digest=base.digest)
            return _Difference(header, older, payload[RECORD_SIZE:])

    def _where(self, ref: BlockRef) -> str:
        return (
            f"{self.name}: block {ref.block} (disk offset {ref.block * self.header.block_size}) "
            f"at file offset {ref.offset} is damaged"
        )

    def prove(self, ancestor: Callable[[int], ImageLayer] | None = None) -> Iterator[str]:
        """See `ImageLayer.prove`."""
        depth = self.header.depth
        below = ancestor(depth - 1) if ancestor is not None and depth else None
        # An image of another tool has no index; the blocks themselves are held against what is said of them.
        parent = resolved_index(below, ancestor) if ancestor and isinstance(below, NativeLayer) else None
        return index_faults(self._alone, parent, depth, self.name)

    def frames(self) -> Iterator[tuple[int, FrameHeader]]:
        """Yield (offset, header) of every intact frame by scanning the file, without the index.

        This is how an image that lost its index is salvaged; it also finds frames after a damaged part.
        """
        return scan_frames(self._device, self._id)

    def close(self) -> None:
        """See `ImageLayer.close`."""
        self._device.close()


class _Located:
    """Adds the place to what is wrong with a frame."""

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, CorruptImageError):
            raise CorruptImageError(f"{self._where}: {error}") from error


def _prove_decoded(raw: bytes, header: FrameHeader) -> bytes:
    if digest(raw) != header.digest:
        raise CorruptImageError("the decoded bytes do not match their checksum")
    return raw


def native_layers(layer: Callable[[int], ImageLayer]) -> Callable[[int], NativeLayer]:
    """Return ``layer`` for chains that hold native images only.

    Raises (when called):
        UnsupportedFeatureError: an image of the chain is of another format.
    """

    def native(depth: int) -> NativeLayer:
        found = layer(depth)
        if not isinstance(found, NativeLayer):
            raise UnsupportedFeatureError(f"a chain cannot be continued on a {found.info.format} image")
        return found

    return native


def resolved_index(tip: ImageLayer, layer: Callable[[int], ImageLayer]) -> ResolvedIndex:
    """Return the whole index of a native point; ``layer`` opens its ancestors by depth.

    Raises:
        UnsupportedFeatureError: an image of the chain is of another format.
    """
    native = native_layers(layer)
    top = tip if isinstance(tip, NativeLayer) else native(tip.info.depth)
    return ResolvedIndex(top.geometry, top.footer.top, native)


def _run_length(refs: Sequence[BlockRef], position: int) -> int:
    """How many refs from ``position`` on can be read in one go."""
    start, count = refs[position].offset, 1
    while position + count < len(refs):
        previous, current = refs[position + count - 1], refs[position + count]
        gap = current.offset - previous.offset - previous.length
        if not 0 <= gap <= _MAX_GAP or current.offset + current.length - start > _MAX_RUN:
            break
        count += 1
    return count


def scan_frames(device: BlockDevice, image_id: bytes) -> Iterator[tuple[int, FrameHeader]]:
    """Yield (offset, header) of every intact frame of an image, from the file alone.

    Damaged parts are stepped over by searching the next frame header of the same image. A length that a
    damaged header claims is not believed beyond the largest block.
    """
    position, window, start = HEADER_SIZE, b"", 0
    while position + FRAME_HEADER_SIZE <= device.size:
        if position + FRAME_HEADER_SIZE > start + len(window):
            start = position
            window = device.pread(start, min(_SCAN_WINDOW, device.size - start))
        found = window.find(FRAME_MAGIC, position - start)
        if found < 0:
            position = start + len(window) - len(FRAME_MAGIC) + 1
            continue
        position = start + found
        header = peek_frame(window[found : found + FRAME_HEADER_SIZE])
        if header is not None:
            intact = _is_intact(device, position, header, image_id)
            if intact:
                yield position, header
            position += FRAME_HEADER_SIZE + header.payload_length if intact else 1


def _is_intact(device: BlockDevice, offset: int, header: FrameHeader, image_id: bytes) -> bool:
    length = FRAME_HEADER_SIZE + header.payload_length
    if header.image_id != image_id or header.payload_length > MAX_BLOCK_SIZE or offset + length > device.size:
        return False
    try:
        unpack_frame(device.pread(offset, length))
    except MountfsError:
        return False
    return True
