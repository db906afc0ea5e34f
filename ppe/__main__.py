"""`python -m ppe` is the `ppe` command, and so is the console script. One rule: nothing is imported
outside of `main` that takes time, because Ctrl-C there would be a traceback.
"""

import sys

from ppe.errors import EXIT_INTERRUPTED


def main() -> int:
    """Run `ppe` with the process's own words and return its exit code."""
    try:
        from ppe import cli
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
