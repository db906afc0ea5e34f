"""`ppe version`: what is installed, read from package metadata without importing any of it."""

import argparse
from typing import Final

from ppe import __version__, output

COMPONENTS: Final = ("numba", "llvmlite", "numpy", "posix_ipc", "psutil", "rich")


class VersionCommand:
    """Print the version of the engine and of what it is built on."""

    name = "version"
    help = "print the version"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the versions; always succeeds."""
        if not args.json:
            output.write(f"ppe {__version__}")
            return 0
        import platform

        output.write_json(
            {
                "ppe": __version__,
                "python": platform.python_version(),
                "kernel": platform.release(),
                "machine": platform.machine(),
                "components": {name: _version(name) for name in COMPONENTS},
            }
        )
        return 0


def _version(component: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(component)
    except metadata.PackageNotFoundError:
        return None
