"""The image format: files, chains and views. Knows neither this machine's disks nor FUSE."""
