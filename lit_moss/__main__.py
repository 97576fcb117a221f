"""`python -m lit_moss VERB …`: the table of verbs is in `cli/main.py`."""

import sys

from lit_moss.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
