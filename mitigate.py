"""Compare mitigations: python mitigate.py experiment=demo."""

from dejavu_lit.cli import mitigate

if __name__ == "__main__":
    mitigate()
