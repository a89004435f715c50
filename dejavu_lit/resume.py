"""Go on with the run in a directory from the configuration saved there: python -m dejavu_lit.resume RUN."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from dejavu_lit.entry.training import resume

    if len(sys.argv) != 2:
        sys.exit("usage: python -m dejavu_lit.resume RUN")
    resume(Path(sys.argv[1]))
