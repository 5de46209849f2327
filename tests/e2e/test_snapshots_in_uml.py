"""Snapshots by LVM and dm-snapshot with the real tools, in a kernel that has them: User-mode Linux.

Inside, the product images volumes that a program writes to, and is killed in the middle; outside, the
images are restored and judged by fsck and a mount.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from support import writers
from support.kernel import kernel_mount, loop_device
from support.product import mountfs
from support.requirements import REPOSITORY, require_root, require_tool, run, unavailable
from support.umlkernel import run_in_uml

pytestmark = [pytest.mark.root, pytest.mark.nightly, pytest.mark.timeout(900)]
MIB = 1 << 20
_MODULES = (
    "drivers/md/dm-mod", "drivers/md/dm-bufio", "drivers/md/dm-snapshot",
    "drivers/md/persistent-data/dm-persistent-data", "drivers/md/dm-bio-prison", "drivers/md/dm-thin-pool",
    "drivers/block/loop",
)  # fmt: skip
_LVM = """
devices { use_devicesfile=0
  filter=["a|/dev/ubd.*|","r|.*|"]
  types=["ubd",16] }
activation { udev_sync=0
  udev_rules=0
  monitoring=0 }
global { locking_dir="/mnt/lock" }
backup { backup=0
  archive=0 }
"""
_START = r"""
mount -t sysfs sysfs /sys
mkdir /dev/shm /mnt/tmp
mount -t tmpfs tmpfs /dev/shm
export TMPDIR=/mnt/tmp LVM_SYSTEM_DIR={folder} DM_DISABLE_UDEV=1 LVM_SUPPRESS_FD_WARNINGS=1
export XDG_STATE_HOME=/mnt/state PYTHONPATH={project} LC_ALL=C.UTF-8
mountfs() {{ {python} -m mountfs "$@"; }}
writing() {{ mke2fs -q -t ext4 "$1"; mount "$1" /mnt/top; {python} {folder}/writer.py /mnt/top & writer=$!
  until [ -s /mnt/top/last ]; do sleep 0.1; done; }}
resting() {{ kill -9 $writer; wait $writer || true; umount /mnt/top; }}
ours() {{ lvs --noheadings -o lv_name | grep mountfs- || true; dmsetup ls | grep mountfs- || true
  losetup -a; ls /mnt/tmp /mnt/state/mountfs/snapshots 2>/dev/null | grep mountfs-  || true; }}
clean() {{ test -z "$(ours)" || {{ echo "left over: $(ours)"; false; }}; }}
ends() {{ wanted=$1; shift; got=0; "$@" || got=$?
  test $got = $wanted || {{ echo "$* ended with $got"; false; }}; }}
standing() {{ until dmsetup info --noheadings -c -o name | grep -q mountfs-; do sleep 0.1; done; sleep 2; }}
# Kills a backup in its middle, when its snapshot stands.
killed() {{ {python} -m mountfs backup "$1" {folder}/repo --set killed --raw --snapshot "$2" \
    --rate-limit 1 & backup=$!
  standing
  kill -9 $backup; wait $backup || true; test -n "$(ours)"; }}
"""
_LOGICAL = r"""
pvcreate -q -y /dev/ubda
vgcreate -q vg /dev/ubda
lvcreate -q -y -Wn -L 48M -n data vg
lvcreate -q -y --type thin-pool -L 96M -n pool vg
lvcreate -q -y -Wn -V 48M --thin -n thin vg/pool
writing /dev/mapper/vg-data
ends 0 mountfs backup /dev/mapper/vg-data {folder}/repo --set classic
clean
ends 0 mountfs backup /dev/mapper/vg-data {folder}/repo --set classic --snapshot lvm
clean
killed /dev/mapper/vg-data lvm
mountfs doctor --fix >/dev/null || true
clean
killed /dev/mapper/vg-data lvm
ends 0 mountfs backup /dev/mapper/vg-data {folder}/repo --set classic --snapshot lvm
clean
lvcreate -q -y -s -L 8M -n mine --addtag mountfs-mine vg/data
mountfs doctor --fix >/dev/null || true
lvs vg/mine
lvremove -q -y vg/mine
resting
writing /dev/mapper/vg-thin
ends 0 mountfs backup /dev/mapper/vg-thin {folder}/repo --set thin --snapshot lvm
clean
resting
"""
_FULL = r"""
pvcreate -q -y /dev/ubdb
vgcreate -q small /dev/ubdb
lvcreate -q -y -Wn -L 40M -n data small
mke2fs -q -t ext4 /dev/mapper/small-data
mount /dev/mapper/small-data /mnt/top
(standing; dd if=/dev/urandom of=/mnt/top/much bs=1M count=20 conv=fsync 2>/dev/null) &
ends 33 mountfs backup /dev/mapper/small-data {folder}/repo --set full --raw --snapshot lvm --rate-limit 1
wait
umount /mnt/top
clean
"""
_MAPPED = r"""
sectors=$(blockdev --getsz /dev/ubdc)
half=$((sectors / 2))
printf "0 $half linear /dev/ubdc $half\n$half $half linear /dev/ubdc 0\n" | dmsetup create mapped
dmsetup table mapped >{folder}/before
writing /dev/mapper/mapped
ends 0 mountfs backup /dev/mapper/mapped {folder}/repo --set mapped
clean
dmsetup table mapped | cmp - {folder}/before
killed /dev/mapper/mapped dm
mountfs doctor --fix >/dev/null || true
clean
dmsetup table mapped | cmp - {folder}/before
dmsetup suspend mapped
dmsetup resume mapped
ends 0 mountfs backup /dev/mapper/mapped {folder}/repo --set mapped --snapshot dm
clean
resting
"""


def _inside(folder: Path, *parts: str, disks: list[Path]) -> None:
    modules = Path("/usr/lib/uml/modules")
    found = next(modules.glob("*/kernel"), None) if modules.is_dir() else None
    if found is None:
        unavailable("needs the modules of user-mode-linux")
    values = {
        "folder": shlex.quote(str(folder)),
        "project": shlex.quote(str(REPOSITORY)),
        "python": shlex.quote(sys.executable),
    }
    load = [f"insmod {found}/{module}.ko" for module in _MODULES]
    run_in_uml([*load, *(part.format(**values) for part in (_START, *parts))], disks)


def _disk(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    require_root()
    require_tool("linux.uml", "insmod", "lvcreate", "dmsetup", "e2fsck")
    (tmp_path / "lvm.conf").write_text(_LVM)
    (tmp_path / "writer.py").write_text(writers.SCRIPT)
    return tmp_path


def _judge(folder: Path, name: str, points: int) -> None:
    for point in range(1, points + 1):
        target = folder / f"{name}{point}.img"
        mountfs("restore", f"{folder / 'repo' / name}@{point}", target, "--yes")
        run("e2fsck", "-f", "-n", target)
        with loop_device(target) as device, kernel_mount(device, "ext4") as top:
            assert writers.check_written(top)


def test_logical_volumes_are_imaged_while_they_are_written(folder: Path) -> None:
    _inside(folder, _LOGICAL, disks=[_disk(folder / "a", 320 * MIB)])
    _judge(folder, "classic", 3)
    _judge(folder, "thin", 1)


def test_a_snapshot_that_ran_full_makes_no_image(folder: Path) -> None:
    _inside(folder, _FULL, disks=[_disk(folder / "a", MIB), _disk(folder / "b", 48 * MIB)])
    assert not list((folder / "repo").rglob("*.mfi"))


def test_devices_of_the_device_mapper_are_imaged_while_they_are_written(folder: Path) -> None:
    disks = [_disk(folder / "a", MIB), _disk(folder / "b", MIB), _disk(folder / "c", 48 * MIB)]
    _inside(folder, _MAPPED, disks=disks)
    _judge(folder, "mapped", 2)
