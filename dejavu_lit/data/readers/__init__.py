"""Readers: one file per source of pairs."""
