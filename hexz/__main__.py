"""The toolbox: ``python3 -I /path/to/hexz/__main__.py COMMAND``, or ``python3 -m hexz COMMAND``."""

import os
import sys


def _look_beside_the_package() -> None:
    """Import this package from where it lies, and nothing from the folder that the command is called in.

    Run by its path, the interpreter puts the package's own folder first, where ``secrets`` and others hide modules of
    the standard library; run by ``-m``, the current folder, where anything may lie.
    """
    package = os.path.dirname(os.path.realpath(__file__))
    home = os.path.dirname(package)
    if not __package__:
        sys.path[:] = [home, *(entry for entry in sys.path if os.path.realpath(entry) not in (package, home))]
    elif sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.curdir) != home:
        del sys.path[0]


def _main() -> int:
    from hexz.installation import at_home

    if not at_home("hexz"):
        return os.EX_CONFIG
    from hexz.tools.main import main

    return main()


if __name__ == "__main__":
    _look_beside_the_package()
    sys.exit(_main())
