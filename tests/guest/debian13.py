"""Programs of Debian 13 in a folder of their own, for a guest to run with `chroot`: libiscsi 1.20,
because iSER is broken in the 1.19 of Debian 12, and all that it needs, from the C library to siw's
driver. `python -m tests.guest.debian13` fetches them (9 MB).
"""

import contextlib
import fcntl
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from tests.guest import image
from tests.guest.packages import choose_release, fetch, resolve, unpack

RELEASE = "trixie"
PACKAGES = ("ibverbs-providers", "libiscsi-bin")
# Where the packages' files expect each other, which a package of its own would see to.
LINKS = {"lib": "usr/lib", "lib64": "usr/lib64"}
PLACES = ("dev", "proc", "sys", "tmp")


def prepare():
    """The folder with the programs, made now if it is not there."""
    cache = image.cache_folder() / RELEASE
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        choose_release(cache, RELEASE)
        files = resolve(cache, PACKAGES)
        folder = cache / f"root-{_key(files)}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                root = Path(work) / "root"
                for package in fetch(cache, PACKAGES, files):
                    unpack(package, root)
                for name, to in LINKS.items():
                    (root / name).symlink_to(to)
                for name in PLACES:
                    (root / name).mkdir()
                for old in cache.glob("root-*"):
                    shutil.rmtree(old)
                root.rename(folder)
        return folder


def _key(files):
    text = "\n".join(files).encode() + Path(__file__).read_bytes()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"{prepare()}\n")
