"""Disk images you can walk into: trees, adapters and the command line."""

__version__ = "0.1.0"
