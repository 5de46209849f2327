"""Speed and size, measured beside other tools in the same run."""
