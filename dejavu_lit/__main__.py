"""``python -m dejavu_lit COMMAND``, installed as ``dejavu COMMAND``."""

from dejavu_lit.cli.commands import main

if __name__ == "__main__":
    main()
