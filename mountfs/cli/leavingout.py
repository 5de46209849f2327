"""What of a source is left out of its image: free space, and files that nobody wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.allocation.disk import DiskAllocation, read_allocation
from mountfs.allocation.excluded import ExcludedFiles, find_excluded
from mountfs.cli.standstill import moves
from mountfs.session import drivers_of

if TYPE_CHECKING:
    from engine.devices.ratelimit import RateLimited
    from engine.devices.source import SourceDevice
    from mountfs.cli.render import Renderer
    from mountfs.excludes import Pattern


def find_free(
    out: Renderer, device: SourceDevice, source: SourceDevice | RateLimited
) -> DiskAllocation | None:
    """Find what is free on the source; None, and a warning, while it can change."""
    mounted = moves(device)
    if mounted:
        out.warning(
            f"{device.identity.path} is mounted at {', '.join(mounted)} and can change: it is imaged whole, "
            "free space included"
        )
        return None
    found = read_allocation(source, device.sector_size if device.identity.is_device else None)
    for sentence in found.warnings():
        out.warning(sentence)
    return found


def find_unwanted(
    out: Renderer,
    device: SourceDevice,
    source: SourceDevice | RateLimited,
    allocation: DiskAllocation | None,
    patterns: tuple[Pattern, ...],
) -> ExcludedFiles | None:
    """Find the files that are left out; None, and a warning where some were named, while they can change."""
    if allocation is None:
        if patterns:
            out.warning("no file is left out by --exclude: the source can change while it is read")
        return None
    sector_size = device.sector_size if device.identity.is_device else None
    found = find_excluded(source, allocation, patterns, drivers_of, sector_size)
    for sentence in found.warnings:
        out.warning(sentence)
    return found or None
