"""The toolbox: ``python -m hexz COMMAND``."""

import sys

from hexz.tools.main import main

if __name__ == "__main__":
    sys.exit(main())
