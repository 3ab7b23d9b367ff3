"""Decompressed blocks kept in bounded memory, and the threads that decompress ahead."""

from hexz.cache.blocks import EMPTY, Block, BlockCache, Loading
from hexz.cache.budget import ByteBudget
from hexz.cache.once import Once
from hexz.cache.workers import Workers

__all__ = ["EMPTY", "Block", "BlockCache", "ByteBudget", "Loading", "Once", "Workers"]
