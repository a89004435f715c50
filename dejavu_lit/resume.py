"""Go on with the run in a directory from the configuration saved there: python -m dejavu_lit.resume RUN."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from dejavu_lit.entry.training import resume
    from dejavu_lit.errors import as_called

    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        usage = as_called("usage: python -m dejavu_lit.resume RUN, a directory that train.py or mitigate.py made")
        if len(sys.argv) != 2:
            sys.exit(usage)
        print(usage)
    else:
        resume(Path(sys.argv[1]))
