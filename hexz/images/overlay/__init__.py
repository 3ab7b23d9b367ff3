"""Writable images over a snapshot: written blocks in a data file, which of them in a journal that survives a kill."""
