"""Node types, one file each; a file registers the torch functions that it builds its node from."""
