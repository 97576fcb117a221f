"""`python -m lit_moss VERB …`: the table of verbs is in `cli.py`."""

import sys

from lit_moss.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
