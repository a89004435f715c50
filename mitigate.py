"""Compare mitigations: python mitigate.py experiment=demo."""

from dejavu_lit.cli.mitigate import main

if __name__ == "__main__":
    main()
