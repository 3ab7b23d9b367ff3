"""Snapshots that lie in stores: real ones, and a proxy of faults between them and whoever reads."""
