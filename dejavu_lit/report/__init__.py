"""Figures and pages made from an evaluation's artifacts alone."""
