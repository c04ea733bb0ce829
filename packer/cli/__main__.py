"""The command as a program: `python -m packer.cli`, and the one file that media carry."""

from __future__ import annotations

import sys

from packer.survey import frozen

if __name__ == "__main__":
    frozen.begin()
    # Here, because a child needs nothing of the command.
    from packer.cli.main import main

    sys.exit(main())
