"""Compare mitigations: python mitigate.py experiment=demo."""

from dejavu_lit.entry import mitigate

if __name__ == "__main__":
    mitigate()
