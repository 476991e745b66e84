"""Flower's SuperNode, ended for good when it fails.

After an error of the SuperLink (a database locked for once is enough) Flower's SuperNode stops
working, but its local API server keeps the process alive: nothing starts it again. Here the
process ends with its work, so that systemd, Docker or a shell can.
"""

import os
import sys

from flwr.supernode.cli.flower_supernode import flower_supernode


def main() -> None:
    """Run ``flower-supernode`` with this process's arguments."""
    code: int | str | None = 1
    try:
        flower_supernode()
        print("The SuperNode ended: the SuperLink refused or failed. Start it again.", flush=True)
    except SystemExit as end:
        code = end.code
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
