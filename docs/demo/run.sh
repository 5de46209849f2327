#!/usr/bin/env bash
# The whole story in one run: back up a disk three times, browse every point, take files out, find damage,
# restore. Nothing outside a temporary folder is touched, and nothing needs root.
set -euo pipefail
shopt -s inherit_errexit
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/disk.sh"

work=$(mktemp -d)
cd "$work"
checks=0 failures=0
linux=2-ext4-Linux windows=3-ntfs-Windows

finish() {
  mountpoint -q "$work/mnt" 2>/dev/null && mountfs umount "$work/mnt" >/dev/null 2>&1
  rm -rf "$work"
}
trap finish EXIT

say() { printf '\n# %s\n' "$*"; }

# Show a command as a person would type it, then run it.
run() {
  printf '$ %s\n' "$*"
  "$@"
}

# check WHAT COMMAND...: one line that says whether the command succeeded; it is counted.
check() {
  local what=$1
  shift
  checks=$((checks + 1))
  if "$@" >/dev/null 2>&1; then
    echo "ok: $what"
  else
    failures=$((failures + 1))
    echo "FAILED: $what"
  fi
}

# fails_naming WORD COMMAND...: the command must fail, and its output must hold the word.
fails_naming() {
  local word=$1 output status=0
  shift
  output=$("$@" 2>&1) || status=$?
  [ "$status" -ne 0 ] && grep -qF -- "$word" <<<"$output"
}

fuse_usable() { [ -r /dev/fuse ] && [ -w /dev/fuse ] && command -v fusermount3 >/dev/null; }

same_bytes() { [ "$(sha256sum <"$1")" = "$(sha256sum <"$2")" ]; }

flip_byte() { # FILE OFFSET
  local old
  old=$(od -An -tu1 -j "$2" -N 1 "$1")
  printf "\\x$(printf %02x $((old ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

back_up() {
  say "Day one: a disk with a FAT, an ext4 and an NTFS"
  make_disk
  cp --sparse=always disk.img day1.img
  # --raw: free space too, since the disks are compared byte for byte below.
  run mountfs backup --raw disk.img repo
  say "Day two: some files change; only they are stored"
  change_first
  cp --sparse=always disk.img day2.img
  run mountfs backup --raw disk.img repo
  say "Day three"
  change_second
  cp --sparse=always disk.img day3.img
  run mountfs backup --raw disk.img repo
  run mountfs list repo
  run mountfs info "$(find repo -name '*.mfi' | sort | head -n 1)"
}

browse() {
  say "Every point is a folder, without mounting"
  run mountfs ls "repo/disk@latest:$linux/etc"
  run mountfs tree "repo/disk@1:$linux/home"
  run mountfs cat "repo/disk@1:$linux/etc/motd"
  run mountfs cat "repo/disk@2:$windows/plan.txt"
  check "the welcome of day two" cmp <(mountfs cat "repo/disk@2:$linux/etc/motd") made/second/motd
  check "the plan of day three" cmp <(mountfs cat "repo/disk@3:$windows/plan.txt") made/third/plan.txt
}

mounted() {
  if ! fuse_usable; then
    say "FUSE is not usable here, so nothing is mounted; everything else works without it"
    return
  fi
  say "Every point is a folder, mounted"
  mkdir mnt
  run mountfs mount repo mnt
  run ls mnt
  local day
  for day in 1 2 3; do
    check "the mounted disk of day $day is the disk of that day" same_bytes "$(mounted_disk "$day")" "day$day.img"
  done
  check "the cat of day one" cmp "$(mounted_file 1 "$linux/home/ada/photos/cat.jpg")" made/files/home/ada/photos/cat.jpg
  run mountfs umount mnt
}

# Where the points of the set lie in the mounted tree.
mounted_disk() { find mnt -path "*disk*" -name '*.img' | sort | sed -n "$1p"; }
mounted_file() { find mnt -path "*/$2" | sort | sed -n "$1p"; }

take_out() {
  say "One file comes back"
  run mountfs cp "repo/disk@1:$linux/home/ada/photos/cat.jpg" out/
  check "the photo is the one that was backed up" cmp out/cat.jpg made/files/home/ada/photos/cat.jpg
}

damage() {
  say "A damaged image is found and named"
  run mountfs verify repo
  cp -r repo damaged
  local image
  image=$(find damaged -name '*.mfi' -size +1M | sort | head -n 1)
  flip_byte "$image" 1000000
  echo "\$ # one bit of $image is flipped"
  check "verify finds it and names the file" fails_naming "$(basename "$image")" mountfs verify damaged
}

restore() {
  say "The whole disk comes back"
  run mountfs restore repo/disk@1 first.img --yes
  run mountfs restore repo/disk@3 third.img --yes
  check "the restored disk of day one" cmp first.img day1.img
  check "the restored disk of day three" cmp third.img day3.img
}

command -v mountfs >/dev/null || { echo "mountfs is not installed; run 'make demo'" >&2; exit 1; }
back_up
browse
mounted
take_out
damage
restore
printf '\n%d of %d checks passed\n' $((checks - failures)) "$checks"
[ "$failures" -eq 0 ]
