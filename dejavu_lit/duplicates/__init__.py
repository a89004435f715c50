"""Duplicates within and across the sets: exact, perceptual and semantic."""
