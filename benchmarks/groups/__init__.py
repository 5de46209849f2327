"""One module for each group of figures: TITLE, TARGETS, and run(bench)."""

NAMES = ("full", "increment", "restore", "disk", "trees", "chain", "start", "memory", "foreign")
