"""`python -m ppe` is the `ppe` command."""

import sys

from ppe.cli import main

if __name__ == "__main__":
    sys.exit(main())
