"""Compares this project's modules with recorded tensors of the released codec (`experiments.contract.check`).

python -m experiments.check_contract FOLDER
"""

import sys

from experiments.contract.check import main

if __name__ == "__main__":
    sys.exit(main())
