"""Every error a user can cause or meet, in one tree.

Each class knows its errno (what a mounted file answers) and its exit code (what a script sees).
The message is one line: what is wrong, where, and what to do about it.

    MountfsError                        1
      UsageError                        2
      ImageError
        NotAnImageError                10   the file is not an image of any known format
        UnsupportedFeatureError        11   a known format, with a feature this version lacks
        IncompleteImageError           12   a backup that never finished, or a truncated file
        CorruptImageError              13   stored bytes are not the bytes that were written
        UnreadableBlockError           14   the block was already unreadable at the source
        PartOfImageError               15   one part of a split image, and not the one to open
      ChainError
        ParentMissingError             20
        ParentMismatchError            21   a file stands where the parent was, with other content
        ChainCycleError                22
      SourceError
        SourceReadError                30   the source answered EIO, or is gone
        SourceMismatchError            31   the set holds images of something else
        SnapshotError                  33   no snapshot could be made of the source, or it did not last
      DestinationError                 40   the target of a write failed
        DestinationFullError           41
        DestinationReadOnlyError       42
        RepositoryInsideSourceError    43
        SetBusyError                   44
      TargetError
        TargetTooSmallError            50
        TargetInUseError               51   mounted, or held by the kernel
        TargetHoldsImageError          52
        NotConfirmedError              53   nobody agreed to overwrite it
        VerificationError              54   what was written does not read back
        TargetMismatchError            55   the target is not the disk whose serial number was given
      NotFoundError                    60   no such image, point, partition or file
        AmbiguousNameError             61
      VolumeError                      62   a file system that cannot be read
        UnsupportedVolumeError         63   of a kind no driver knows
      LockedError                      64   encrypted, and no secret that was given opens it
      MountError                       70
        FuseUnavailableError           71
        MountPointError                72   not a folder, not empty, already in use
      AccessDeniedError                77
      StorageError                     78   the storage of the images failed
      HookError                        82   a command that was to run before or after failed
      InterruptedByUserError          130
"""

import errno as _errno
from typing import ClassVar


class MountfsError(Exception):
    """An expected failure. ``str(error)`` is the one line that the user reads."""

    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 1


class UsageError(MountfsError):
    """The command line or an argument makes no sense."""

    errno = _errno.EINVAL
    exit_code = 2


class ImageError(MountfsError):
    """Something is wrong with an image file."""


class NotAnImageError(ImageError):
    """The file is not an image of any format that we know."""

    errno = _errno.EINVAL
    exit_code = 10


class UnsupportedFeatureError(ImageError):
    """The image needs a feature that this version does not have; the message names it."""

    errno = _errno.ENOTSUP
    exit_code = 11


class IncompleteImageError(ImageError):
    """The image has no valid end: the backup never finished, or the file was cut short."""

    exit_code = 12


class CorruptImageError(ImageError):
    """Stored bytes do not match their checksum, or contradict each other."""

    exit_code = 13


class UnreadableBlockError(ImageError):
    """The block could not be read from the source when the image was made."""

    exit_code = 14


class PartOfImageError(ImageError):
    """The file is one part of a split image; the message names the part to open. It is no point by itself."""

    errno = _errno.EINVAL
    exit_code = 15


class ChainError(MountfsError):
    """The images that a point depends on are not all there, or not the right ones."""


class ParentMissingError(ChainError):
    """An image names a parent that is not in its set."""

    exit_code = 20


class ParentMismatchError(ChainError):
    """A file claims to be the parent, but its content is not what the child was built on."""

    exit_code = 21


class ChainCycleError(ChainError):
    """An image is its own ancestor."""

    exit_code = 22


class SourceError(MountfsError):
    """The disk or file that is being imaged failed."""


class SourceReadError(SourceError):
    """The source could not be opened, answered an I/O error, shrank, or vanished."""

    exit_code = 30


class SourceMismatchError(SourceError):
    """The set already holds images of another source."""

    errno = _errno.EINVAL
    exit_code = 31


class SnapshotError(SourceError):
    """No snapshot could be made of the source, or it broke while it was read."""

    exit_code = 33


class DestinationError(MountfsError):
    """Writing to the repository or the target failed."""

    exit_code = 40


class DestinationFullError(DestinationError):
    """No space is left where we write."""

    errno = _errno.ENOSPC
    exit_code = 41


class DestinationReadOnlyError(DestinationError):
    """The place where we should write is read-only."""

    errno = _errno.EROFS
    exit_code = 42


class RepositoryInsideSourceError(DestinationError):
    """The image would be written onto the very disk that is being imaged."""

    errno = _errno.EINVAL
    exit_code = 43


class SetBusyError(DestinationError):
    """Another process is writing to the same set."""

    errno = _errno.EBUSY
    exit_code = 44


class TargetError(MountfsError):
    """The target of a restore is not acceptable."""

    errno = _errno.EINVAL


class TargetTooSmallError(TargetError):
    """The target has fewer bytes than the disk in the image."""

    errno = _errno.ENOSPC
    exit_code = 50


class TargetInUseError(TargetError):
    """The target is mounted or otherwise held."""

    errno = _errno.EBUSY
    exit_code = 51


class TargetHoldsImageError(TargetError):
    """What would be read, the image or the source, lies on the target."""

    exit_code = 52


class NotConfirmedError(TargetError):
    """The target holds data and nobody agreed to overwrite it."""

    errno = _errno.EPERM
    exit_code = 53


class VerificationError(TargetError):
    """What was written does not read back as it should."""

    errno = _errno.EIO
    exit_code = 54


class TargetMismatchError(TargetError):
    """The target is not the disk whose serial number was given."""

    errno = _errno.ENODEV
    exit_code = 55


class NotFoundError(MountfsError):
    """No image, point, partition or file has that name."""

    errno = _errno.ENOENT
    exit_code = 60


class AmbiguousNameError(NotFoundError):
    """The name fits more than one thing."""

    errno = _errno.EINVAL
    exit_code = 61


class VolumeError(MountfsError):
    """A file system inside the image cannot be read; the bytes of its partition still can."""

    exit_code = 62


class UnsupportedVolumeError(VolumeError):
    """No driver knows this kind of file system or volume."""

    errno = _errno.ENOTSUP
    exit_code = 63


class LockedError(MountfsError):
    """An image or a volume is encrypted, and no password or key that was given opens it."""

    errno = _errno.EACCES
    exit_code = 64


class MountError(MountfsError):
    """The mount could not be made or ended."""

    exit_code = 70


class FuseUnavailableError(MountError):
    """This machine cannot mount with FUSE; ls, cat, cp, verify and restore still work."""

    errno = _errno.ENODEV
    exit_code = 71


class MountPointError(MountError):
    """The mount point is missing, not a folder, not empty, or already in use."""

    errno = _errno.EBUSY
    exit_code = 72


class AccessDeniedError(MountfsError):
    """The operating system refused access."""

    errno = _errno.EACCES
    exit_code = 77


class StorageError(MountfsError):
    """The storage that holds the images failed."""

    exit_code = 78


class HookError(MountfsError):
    """A command that was to run before or after a backup failed, or took too long."""

    exit_code = 82


class InterruptedByUserError(MountfsError):
    """Ctrl-C or SIGTERM."""

    errno = _errno.EINTR
    exit_code = 130


def error_classes() -> list[type[MountfsError]]:
    """All classes of the tree, parents first; the documentation and its test are made from it."""
    found: list[type[MountfsError]] = []
    pending: list[type[MountfsError]] = [MountfsError]
    while pending:
        cls = pending.pop(0)
        found.append(cls)
        pending.extend(cls.__subclasses__())
    return found
