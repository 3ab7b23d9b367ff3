"""Tests of hexz/rights."""
