"""``python -m dejavu_lit COMMAND``, installed as ``dejavu COMMAND``."""

from dejavu_lit.cli.app import main

if __name__ == "__main__":
    main()
