"""Another Linux, started as a program: User-mode Linux, for file systems that the running kernel lacks.

Its root is this machine's own file system, so that programs and files have the same paths inside.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from support.requirements import find_tool, require_root, require_tool

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATIENCE = 300.0
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /mnt
mkdir /mnt/top
sh -e {folder}/commands >{folder}/log 2>&1 && echo done >>{folder}/log
echo o >/proc/sysrq-trigger
exec sleep 60
"""


def run_in_uml(commands: Sequence[str], images: Sequence[Path], *, memory: str = "512M") -> None:
    """Run shell commands as root of another kernel; ``images`` are ``/dev/ubda`` and on, at most 16.

    The folder ``/mnt/top`` is there to mount on. Needs root, because the commands have its rights here.
    """
    require_root()
    require_tool("linux.uml")
    with tempfile.TemporaryDirectory(prefix="uml-") as folder:
        log, init = Path(folder, "log"), Path(folder, "init")
        Path(folder, "commands").write_text("\n".join(commands))
        init.write_text(_INIT.format(folder=shlex.quote(folder)))
        init.chmod(0o755)
        disks = [f"ubd{number:x}={path}" for number, path in enumerate(images)]
        options = [
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "rw",
            "quiet",
            "con=null",
            "con0=null",
        ]
        done = subprocess.run(
            [
                str(find_tool("linux.uml")),
                f"mem={memory}",
                *disks,
                *options,
                f"uml_dir={folder}",
                f"init={init}",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
        said = log.read_text(errors="replace") if log.exists() else done.stdout.decode(errors="replace")
        if not said.endswith("done\n"):
            raise RuntimeError(f"User-mode Linux did not do it: {said}")
