# Makes the disk of the demonstration and changes it, all without root. Sourced by run.sh, in its folder.
# disk.img: GPT, 96 MiB; 1: FAT "EFI", 2: ext4 "Linux", 3: NTFS "Windows".

declare -A start_mib=([fat]=1 [ext4]=17 [ntfs]=49)
declare -A length_mib=([fat]=16 [ext4]=32 [ntfs]=40)

make_disk() {
  mkdir -p made/files/etc made/files/home/ada/photos
  echo "welcome to the first day" >made/files/etc/motd
  echo "demo" >made/files/etc/hostname
  seq 1 20000 >made/files/home/ada/numbers.txt
  noise 3000000 1 >made/files/home/ada/photos/cat.jpg
  noise 2000000 2 >made/files/home/ada/photos/dog.jpg

  truncate -s 96M disk.img
  sgdisk --clear \
    --new=1:1M:+16M --typecode=1:ef00 --change-name=1:EFI \
    --new=2:17M:+32M --typecode=2:8300 --change-name=2:Linux \
    --new=3:49M:+40M --typecode=3:0700 --change-name=3:Windows disk.img >/dev/null

  local name
  for name in fat ext4 ntfs; do truncate -s "${length_mib[$name]}M" "made/$name"; done
  mkfs.vfat -F 16 -n EFI made/fat >/dev/null
  mcopy -Q -s -i made/fat made/files/etc ::
  mke2fs -q -F -t ext4 -L Linux -d made/files made/ext4
  mkfs.ntfs -q -F -Q -s 512 -p 0 -H 16 -S 63 -L Windows made/ntfs >/dev/null 2>&1
  put_ntfs made/files/home/ada/numbers.txt
  put_ntfs made/files/home/ada/photos/dog.jpg
  store_volumes
}

# The second day: a new welcome and a new photo on the ext4, a new document on the NTFS.
change_first() {
  mkdir made/second
  echo "welcome to the second day" >made/second/motd
  noise 1000000 3 >made/second/bird.jpg
  echo "the plan" >made/second/plan.txt
  debugfs -w -f - made/ext4 >/dev/null 2>&1 <<'END'
cd /etc
rm motd
write made/second/motd motd
cd /home/ada/photos
write made/second/bird.jpg bird.jpg
END
  put_ntfs made/second/plan.txt
  store_volumes
}

# The third day: the photo of the cat is gone, the plan has changed, the FAT has a new file.
change_second() {
  mkdir made/third
  echo "the better plan" >made/third/plan.txt
  echo "boot" >made/third/boot.cfg
  debugfs -w -R "rm /home/ada/photos/cat.jpg" made/ext4 >/dev/null 2>&1
  put_ntfs made/third/plan.txt
  mcopy -Q -o -i made/fat made/third/boot.cfg ::
  store_volumes
}

# Bytes that no compressor can shrink, the same in every run: noise SIZE SEED.
noise() {
  python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(int(sys.argv[2])).randbytes(int(sys.argv[1])))' "$@"
}

put_ntfs() { ntfscp -q -f made/ntfs "$1" "$(basename "$1")" >/dev/null; }

store_volumes() {
  local name
  for name in fat ext4 ntfs; do
    dd if="made/$name" of=disk.img bs=1M seek="${start_mib[$name]}" conv=notrunc status=none
  done
}
