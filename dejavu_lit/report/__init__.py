"""Figures, pages, dashboards and terminal output, made from the artifacts of evaluations and studies alone."""
