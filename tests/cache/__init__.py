"""Tests of hexz/cache."""
