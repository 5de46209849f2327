"""The engine: imaging, verifying and restoring. One verb, one module."""
