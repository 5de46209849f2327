r"""Shadow copies of Windows: a volume as it was at one moment, while programs go on writing to it.

They are made and removed through the documented WMI class Win32_ShadowCopy, asked by PowerShell. What was
made is written down as soon as Windows has told its name, so that the next run removes what one that was
killed left behind; one killed within that moment leaves a copy that 'vssadmin list shadows' shows.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.snapshots.provider import Picture, SnapshotProvider
from imageformat.errors import AccessDeniedError, MountfsError, SnapshotError, SourceReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.snapshots.journal import Entry
    from engine.snapshots.provider import SourceFacts

TIMEOUT_S = 300
_VOLUME = re.compile(r"(?:[A-Za-z]:\\|\\\\\?\\Volume\{[0-9A-Fa-f-]{36}\}\\)\Z")
_ID = re.compile(r"\{[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}\Z")
_DEVICE = re.compile(r"\\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy\d+\Z")
_DENIED = 1
_REASONS = {
    1: "access is denied: run this as administrator",
    2: "an argument is invalid",
    3: "there is no such volume",
    4: "this volume cannot have shadow copies",
    5: "this kind of shadow copy is not supported",
    6: "there is not enough storage for a shadow copy",
    7: "the volume is in use",
    8: "it has as many shadow copies as it can have",
    9: "another shadow copy is being made: try again",
    10: "the provider of shadow copies refused",
    11: "the provider of shadow copies is not registered",
    12: "the provider of shadow copies failed",
}
"""Return values of Win32_ShadowCopy.Create, as documented; others are unknown errors."""


@dataclass(frozen=True, slots=True)
class ShadowCopy:
    """A shadow copy that exists."""

    id: str
    device: str
    r"""To be opened like a volume: ``\\?\GLOBALROOT\Device\HarddiskVolumeShadowCopy7``."""


def create_script(volume: str) -> str:
    """Return the PowerShell that makes a shadow copy and prints ReturnValue, ID and DeviceObject as JSON.

    Raises:
        UsageError: that is no volume.
    """
    if not _VOLUME.match(volume):
        raise UsageError(f"{volume} is no volume: name it as C:\\")
    return (
        "$ErrorActionPreference='Stop';"
        "$made=Invoke-CimMethod -ClassName Win32_ShadowCopy -MethodName Create "
        f"-Arguments @{{Volume='{volume}';Context='ClientAccessible'}};"
        "$copy=Get-CimInstance -ClassName Win32_ShadowCopy -Filter \"ID='$($made.ShadowID)'\";"
        "@{ReturnValue=$made.ReturnValue;ID=$made.ShadowID;DeviceObject=$copy.DeviceObject}"
        "|ConvertTo-Json -Compress"
    )


def remove_script(shadow_id: str) -> str:
    """Return the PowerShell that removes a shadow copy; one that is gone is no error.

    Raises:
        UsageError: that is no identifier.
    """
    if not _ID.match(shadow_id):
        raise UsageError(f"{shadow_id} is no identifier of a shadow copy")
    return (
        "$ErrorActionPreference='Stop';"
        f"Get-CimInstance -ClassName Win32_ShadowCopy -Filter \"ID='{shadow_id}'\"|Remove-CimInstance"
    )


def parse_created(text: str, volume: str) -> ShadowCopy:
    """Parse what `create_script` printed.

    Raises:
        AccessDeniedError: only administrators may.
        SourceReadError: the reason why there is none.
    """
    try:
        answer = json.loads(text)
        code = int(answer["ReturnValue"])
        shadow_id, device = str(answer["ID"]), str(answer["DeviceObject"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceReadError(f"no shadow copy of {volume}: the answer makes no sense") from error
    if code == _DENIED:
        raise AccessDeniedError(f"no shadow copy of {volume}: {_REASONS[code]}")
    if code:
        raise SourceReadError(f"no shadow copy of {volume}: {_REASONS.get(code, f'unknown error {code}')}")
    if not (_ID.match(shadow_id) and _DEVICE.match(device)):
        raise SourceReadError(f"no shadow copy of {volume}: the answer makes no sense")
    return ShadowCopy(shadow_id, device)


def run_powershell(script: str) -> str:
    """Run a script and return what it printed.

    Raises:
        AccessDeniedError, SourceReadError: it failed; with its last line.
    """
    command = ["powershell.exe", "-NoProfile", "-NonInteractive", "-Command", script]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceReadError(f"PowerShell cannot be asked for a shadow copy: {error}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it does not say why"]
        if "0x80041003" in " ".join(said) or "denied" in " ".join(said).lower():
            raise AccessDeniedError(f"no shadow copy: {_REASONS[_DENIED]}")
        raise SourceReadError(f"no shadow copy: {said[0]}")
    return done.stdout.decode("utf-8", "replace")


def volume_name(path: str) -> str | None:
    r"""Return the name by which Windows makes shadow copies of a volume: ``\\.\C:`` is ``C:\``; else None."""
    name = path.removeprefix("\\\\.\\") + "\\"
    return name if _VOLUME.match(name) else None


def unavailable(facts: SourceFacts) -> str | None:
    """See `SnapshotProvider.unavailable`."""
    if sys.platform == "win32" and volume_name(facts.path) is not None:
        return None
    return "shadow copies are made on Windows, and of single volumes such as C:"


def create(facts: SourceFacts, entry: Entry) -> Picture:
    """See `SnapshotProvider.create`; the identifier is noted before anything of the copy is read."""
    volume = volume_name(facts.path) or facts.path
    try:
        made = parse_created(run_powershell(create_script(volume)), volume)
    except MountfsError as error:
        raise SnapshotError(str(error)) from error
    entry.note(snapshot=made.device, id=made.id)
    return Picture(made.device)


def remove(noted: Mapping[str, str]) -> None:
    """See `SnapshotProvider.remove`."""
    shadow_id = noted.get("id", "")
    if not shadow_id:
        return
    try:
        run_powershell(remove_script(shadow_id))
    except MountfsError as error:
        raise SnapshotError(str(error)) from error


PLUGIN = SnapshotProvider(
    name="vss",
    rank=0 if sys.platform == "win32" else -1,  # elsewhere nobody wants to hear why not
    unavailable=unavailable,
    create=create,
    remove=remove,
)
