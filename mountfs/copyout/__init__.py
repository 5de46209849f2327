"""Copies files and folders out of any tree into a local folder, as ``cp -r`` does, and says what is lost.

What is kept: type, permission bits, owner, modification and access time in nanoseconds, symbolic links
verbatim, hard links, holes, extended attributes, named streams as ``user.`` attributes. What the target
cannot hold is reported as a `Loss`, what could not be read as a `Failure`; nothing is silent, and no byte
that cannot be proven is replaced by a zero. Change and birth times cannot be set on any Linux file system
and are not reported.
"""

from mountfs.copyout.plan import Measure, measure
from mountfs.copyout.report import (
    CopyEvent,
    CopyOptions,
    CopyProgress,
    CopyResult,
    Failure,
    Loss,
    LossKind,
    Overwrite,
)
from mountfs.copyout.run import copy_out

__all__ = [
    "CopyEvent",
    "CopyOptions",
    "CopyProgress",
    "CopyResult",
    "Failure",
    "Loss",
    "LossKind",
    "Measure",
    "Overwrite",
    "copy_out",
    "measure",
]
