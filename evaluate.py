"""Measure memorization: python evaluate.py target=RUN reference=RUN out=DIR."""

from dejavu_lit.cli import evaluate

if __name__ == "__main__":
    evaluate()
