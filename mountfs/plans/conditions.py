"""Whether this machine is on battery, and whether it has a network."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

_POWER = Path("/sys/class/power_supply")
_ROUTES = (Path("/proc/net/route"), Path("/proc/net/ipv6_route"))


if sys.platform == "win32":

    def on_battery() -> bool:
        """Whether this machine runs on battery: ``GetSystemPowerStatus``, whose first byte is 0 then."""
        status = (ctypes.c_ubyte * 12)()
        return bool(ctypes.WinDLL("kernel32").GetSystemPowerStatus(status)) and status[0] == 0

else:

    def on_battery(power: Path = _POWER) -> bool:
        """Whether this machine runs on battery; no when that cannot be told."""
        supplies = [(_read(supply / "type"), _read(supply / "online")) for supply in _folders(power)]
        mains = [online for kind, online in supplies if kind in {"Mains", "USB"}]
        discharging = any(_read(supply / "status") == "Discharging" for supply in _folders(power))
        return discharging and "1" not in mains


def has_network(routes: tuple[Path, ...] = _ROUTES) -> bool:
    """Whether there is a way out of this machine: a default route; yes when that cannot be told."""
    if not any(path.exists() for path in routes):
        return True
    for path in routes:
        for line in _read(path).splitlines():
            words = line.split()
            if len(words) >= 8 and words[1] == "00000000" and words[7] == "00000000":
                return True
            if len(words) == 10 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
                return True
    return False


def _folders(power: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(power.iterdir())
    return []


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("ascii", "replace").strip()
    return ""
