"""Annotators: one file per source of an image's objects."""
