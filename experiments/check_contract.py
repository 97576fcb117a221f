"""Compares our modules with recorded tensors of the released codec; see `experiments.contract.check`.

python -m experiments.check_contract FOLDER
"""

import sys

from experiments.contract.check import main

if __name__ == "__main__":
    sys.exit(main())
