"""Tests of hexz/options."""
