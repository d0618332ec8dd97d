"""Bulk work on a Ray cluster: the functions of the single-machine path, block by block, in order."""
