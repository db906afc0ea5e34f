"""The guest with RDMA devices: the ordinary image, the kernel's rxe and siw, and a folder beside
it, `userland`, with Debian's libibverbs, librdmacm and pyverbs, for the Python of this machine.
`python -m tests.guest.rdma_image` makes it.
"""

import contextlib
import shutil
import sys
from dataclasses import replace

from tests.guest import image, siw

# rxe asks the crypto layer for crc32 and loads nothing itself: a softer bond than a dependency.
RDMA_MODULES = ("dummy", "crc32_generic", "rdma_rxe", "siw", "rdma_ucm", "ib_uverbs")
ISER_MODULES = ("ib_iser", "ib_isert")  # the kernel's initiator and target
# What of the packages goes into the folder: what Python in the guest loads, and nothing else.
USERLAND = (
    "usr/lib/python3/dist-packages/pyverbs",
    "usr/lib/x86_64-linux-gnu/libibverbs.so*",
    "usr/lib/x86_64-linux-gnu/librdmacm.so*",
    "usr/lib/x86_64-linux-gnu/libmlx5.so*",
    "usr/lib/x86_64-linux-gnu/libefa.so*",
    "usr/lib/x86_64-linux-gnu/libnl-route-3.so*",
    "lib/x86_64-linux-gnu/libnl-3.so*",
    "usr/lib/x86_64-linux-gnu/libibverbs/librxe-*.so",
    "usr/lib/x86_64-linux-gnu/libibverbs/libsiw-*.so",
)
_SUFFIX = "-rdmav34.so"


def _add(making):
    siw.build(making)
    folder = making.image / "userland"
    for pattern in USERLAND:
        found = sorted(making.system.glob(pattern))
        assert found, f"no package has {pattern}"
        for path in found:
            to = folder / ("pyverbs" if path.is_dir() else path.name)
            if path.is_dir():
                shutil.copytree(path, to)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to, follow_symlinks=False)


RDMA = replace(
    image.BASE,
    packages=(*image.PACKAGES, "ibverbs-providers", "iproute2", "python3-pyverbs"),
    programs=(*image.PROGRAMS, "usr/bin/rdma"),
    modules={**image.MODULES, "rdma": RDMA_MODULES, "iser": ISER_MODULES},
    sources=(*image.SOURCES, "siw.py", "rdma_image.py"),
    add=_add,
)


def prepare():
    """The image, made now (a minute and a half) if it is not there."""
    return image.prepare(image.cache_folder() / "rdma", RDMA)


def settings(made):
    """Environment variables with which a Python finds the libraries and drivers of the image."""
    folder = made.folder / "userland"
    drivers = ":".join(
        str(path).removesuffix(_SUFFIX) for path in sorted(folder.glob(f"*{_SUFFIX}"))
    )
    return {"LD_LIBRARY_PATH": str(folder), "IBV_DRIVERS": drivers, "PPE_PYVERBS": str(folder)}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"{prepare().folder}\n")
