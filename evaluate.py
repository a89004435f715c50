"""Measure memorization: python evaluate.py target=RUN reference=RUN out=DIR."""

from dejavu_lit.cli.evaluate import main

if __name__ == "__main__":
    main()
