"""File-system drivers: one plug-in file each, with ``PLUGIN = FileSystemDriver(...)``."""
