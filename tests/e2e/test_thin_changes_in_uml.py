"""What changed in thin volumes and devices of dm-era, told by a kernel that has them: User-mode Linux.

Inside, a volume is imaged again and again, and copied whole; outside, images and copies must be equal. How
much was read is what the disk below says.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from support import writers
from support.points import digest_of
from support.product import mountfs
from support.requirements import REPOSITORY, require_root, require_tool, run, unavailable
from support.umlkernel import run_in_uml

pytestmark = [pytest.mark.root, pytest.mark.nightly, pytest.mark.timeout(900)]
MIB = 1 << 20
_MODULES = (
    "drivers/md/dm-mod", "drivers/md/dm-bufio", "drivers/md/persistent-data/dm-persistent-data",
    "drivers/md/dm-bio-prison", "drivers/md/dm-snapshot", "drivers/md/dm-thin-pool", "drivers/md/dm-era",
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
_SCRIBBLE = """
import os, random, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
while True:
    os.pwrite(fd, os.urandom(4096), random.randrange(10000) * 4096)
"""
_START = r"""
mount -t sysfs sysfs /sys
mkdir /dev/shm /mnt/tmp
mount -t tmpfs tmpfs /dev/shm
export TMPDIR=/mnt/tmp LVM_SYSTEM_DIR={folder} DM_DISABLE_UDEV=1 LVM_SUPPRESS_FD_WARNINGS=1
export XDG_STATE_HOME=/mnt/state PYTHONPATH={project} LC_ALL=C.UTF-8
cd {folder}
random() {{ dd if=/dev/urandom of=$1 bs=4k seek=$2 count=$3 conv=notrunc,fsync 2>/dev/null; }}
# Images a device; says how many sectors of the disk were read for it.
backup() {{ before=$(awk '{{print $3}}' /sys/block/ubda/stat)
  {python} -m mountfs backup $1 repo --set $2 --raw --block-size 4 --changed $3 --json >$4.json \
    || {{ cat $4.json; false; }}
  after=$(awk '{{print $3}}' /sys/block/ubda/stat)
  echo $((after - before)) >$4.read; }}
whole() {{ dd if=$1 of=$2.img bs=1M iflag=direct 2>/dev/null; }}
scribbling() {{ {python} scribble.py $1 & scribbler=$!; sleep 0.5; }}
resting() {{ kill -9 $scribbler; wait $scribbler || true; sync; }}
kept() {{ lvs --noheadings -o lv_name | grep -o 'mountfs-kept-.*'; }}
"""
_STILL = r"""
pvcreate -q -y /dev/ubda
vgcreate -q vg-1 /dev/ubda
lvcreate -q -y --type thin-pool -c 64k -L 160M -n pool vg-1
lvcreate -q -y -Wn -V 64M --thin -n thin vg-1/pool
thin=/dev/mapper/vg--1-thin
random $thin 0 10000
backup $thin thin lvm-thin first
whole $thin first
random $thin 100 1
random $thin 3000 200
random $thin 12000 20
blkdiscard -o 20M -l 2M $thin
backup $thin thin auto second
whole $thin second
test $(kept | wc -l) = 1
test -z "$(dmsetup ls | grep mountfs- || true)"
dmsetup status vg--1-pool-tpool | cut -d' ' -f7 | grep -x -e -
scribbling $thin
backup $thin thin auto moving
resting
backup $thin thin auto third
whole $thin third
# Of the same name, and not the one.
old=$(kept)
lvremove -q -y vg-1/$old
random $thin 5000 10
lvcreate -q -y -s -n $old --addtag ${{old%-*}} vg-1/thin
backup $thin thin auto fourth
whole $thin fourth
test $(kept | wc -l) = 1
"""
_MOVING = r"""
pvcreate -q -y /dev/ubda
vgcreate -q vg /dev/ubda
lvcreate -q -y --type thin-pool -c 64k -L 160M -n pool vg
lvcreate -q -y -Wn -V 64M --thin -n thin vg/pool
thin=/dev/mapper/vg-thin
mke2fs -q -t ext4 $thin
mount $thin /mnt/top
random /mnt/top/large 0 8000
{python} writer.py /mnt/top & writer=$!
until [ -s /mnt/top/last ]; do sleep 0.1; done
for round in first second third; do
  backup $thin thin lvm-thin $round
  test $(kept | wc -l) = 1
  lvchange -q -ay -K vg/$(kept)
  whole /dev/mapper/vg-$(kept | sed s/-/--/g) $round
  lvchange -q -an vg/$(kept)
done
kill -9 $writer; wait $writer || true; umount /mnt/top
"""
_ERA = r"""
sectors=$(blockdev --getsz /dev/ubda)
begun() {{ dmsetup create era --table "0 $sectors era /dev/ubdb /dev/ubda 128"; }}
begun
era=/dev/mapper/era
random $era 0 10000
backup $era era dm-era first
whole $era first
random $era 100 1
random $era 3000 200
backup $era era auto second
whole $era second
scribbling $era
backup $era era auto moving
resting
backup $era era auto third
whole $era third
dmsetup status era | cut -d' ' -f7 | grep -x -e -
dmsetup remove era
random /dev/ubda 5000 10
begun
backup $era era auto fourth
whole $era fourth
mke2fs -q -t ext4 $era
mount $era /mnt/top
backup "$era --snapshot none" era dm-era fifth
umount /mnt/top
"""


def _inside(folder: Path, part: str, disks: list[Path]) -> None:
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
    run_in_uml([*load, *(text.format(**values) for text in (_START, part))], disks)


def _disk(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    require_root()
    require_tool("linux.uml", "insmod", "lvcreate", "dmsetup", "thin_delta", "era_invalidate", "e2fsck")
    (tmp_path / "lvm.conf").write_text(_LVM)
    (tmp_path / "scribble.py").write_text(_SCRIBBLE)
    (tmp_path / "writer.py").write_text(writers.SCRIPT)
    return tmp_path


def _restored(folder: Path, name: str, point: int) -> Path:
    target = folder / f"{name}{point}.img"
    mountfs("restore", f"{folder / 'repo' / name}@{point}", target, "--yes")
    return target


def _told(folder: Path, name: str) -> tuple[dict[str, Any], int]:
    changes = json.loads((folder / f"{name}.json").read_text())["changes"]
    return changes, int((folder / f"{name}.read").read_text()) * 512


def test_thin_volumes_are_read_where_they_changed(folder: Path) -> None:
    _inside(folder, _STILL, [_disk(folder / "a", 256 * MIB)])
    names = ("first", "second", "third", "fourth")
    for number, name in zip((1, 2, 4, 5), names, strict=True):
        assert digest_of(_restored(folder, "thin", number)) == digest_of(folder / f"{name}.img"), name
    (_, all_read), (changes, read), (after, _), (doubted, doubted_read) = (_told(folder, n) for n in names)
    assert all_read > 38 * MIB
    assert changes["tracker"] == after["tracker"] == doubted["tracker"] == "lvm-thin"
    assert 33 * MIB < changes["inherited_bytes"] < 37 * MIB, changes
    assert read < 12 * MIB  # 2 MiB changed; 4 MiB are samples; and what LVM reads of its own
    assert not after["reason"]
    assert "another one" in str(doubted["reason"])
    assert not doubted["inherited_bytes"]
    assert doubted_read > 35 * MIB


def test_thin_volumes_are_imaged_while_they_are_written(folder: Path) -> None:
    _inside(folder, _MOVING, [_disk(folder / "a", 256 * MIB)])
    for number, name in enumerate(("first", "second", "third"), 1):
        image = _restored(folder, "thin", number)
        assert digest_of(image) == digest_of(folder / f"{name}.img"), name
        run("e2fsck", "-f", "-n", image)
    for name in ("second", "third"):
        changes, read = _told(folder, name)
        assert changes["inherited_bytes"] > 20 * MIB, changes
        assert read < 30 * MIB


def test_devices_of_dm_era_are_read_where_they_were_written(folder: Path) -> None:
    _inside(folder, _ERA, [_disk(folder / "a", 64 * MIB), _disk(folder / "b", 8 * MIB)])
    names = ("first", "second", "third", "fourth")
    for number, name in zip((1, 2, 4, 5), names, strict=True):
        assert digest_of(_restored(folder, "era", number)) == digest_of(folder / f"{name}.img"), name
    (_, all_read), (changes, read), (after, _), (doubted, doubted_read) = (_told(folder, n) for n in names)
    assert all_read > 60 * MIB
    assert changes["tracker"] == after["tracker"] == doubted["tracker"] == "dm-era"
    assert 60 * MIB < changes["inherited_bytes"] < 64 * MIB, changes
    assert read < 10 * MIB  # 1 MiB was written; 4 MiB are samples
    assert not after["reason"]
    assert "started again" in str(doubted["reason"])
    assert doubted_read > 60 * MIB
    assert "mounted" in str(_told(folder, "fifth")[0]["reason"])
