"""A client of the Network Block Device protocol, as far as imaging needs it: reading, and what lies where."""
