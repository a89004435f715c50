"""Annotators: one file per way to find the objects of an image."""
