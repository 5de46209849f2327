"""Disk images you can walk into: trees, adapters and the command line."""
