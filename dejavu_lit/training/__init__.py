"""Trains a CLIP model on one side with mitigations: the Lightning module, its callbacks and loggers."""
