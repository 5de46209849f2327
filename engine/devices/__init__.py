"""Local disks and files as sources and targets."""
