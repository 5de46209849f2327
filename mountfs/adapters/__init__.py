"""Ways to show a tree: FUSE and others, one plug-in file each."""
