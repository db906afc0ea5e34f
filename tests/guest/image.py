"""The guest's kernel and its root file system, one initial RAM disk, made of Debian packages.

An image is named by the versions of its packages and by the text of the files that make it, so it
is made again when either changes, and never otherwise. `python -m tests.guest.image` makes it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.guest import cpio
from tests.guest.packages import fetch, resolve, unpack

HERE = Path(__file__).parent
SOURCES = ("image.py", "packages.py", "cpio.py", "init.sh", "load.sh")
KERNEL = "linux-image-amd64"
PACKAGES = (
    KERNEL,
    "busybox-static",
    "dmsetup",
    "e2fsprogs",
    "fio",
    "multipath-tools",
    "open-iscsi",
    "sg3-utils",
    "sg3-utils-udev",
    "udev",
    "util-linux",
)
# Programs by their path in the packages; a pattern must match. The libraries they need come along.
PROGRAMS = (
    "bin/lsblk",
    "bin/udevadm",
    "sbin/blkdiscard",
    "sbin/dmsetup",
    "sbin/fstrim",
    "sbin/iscsi*",
    "sbin/mke2fs",
    "sbin/multipath*",
    "sbin/e2fsck",
    "usr/bin/fio",
    "usr/bin/sg_*",
    "sbin/resize2fs",
    "lib/udev/*_id",
)
TREES = (
    "lib/multipath",
    "lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "etc/iscsi",
    "etc/mke2fs.conf",
)
LINKS = {
    "sbin/mkfs.ext4": "mke2fs",
    "sbin/fsck.ext4": "e2fsck",
    "sbin/udevd": "../bin/udevadm",  # it looks at its name
    "bin/sh": "busybox",
}
# Kernel modules by group; those that they depend on come along. `load GROUP` inserts them.
MODULES = {
    "base": (
        "virtio_pci",
        "virtio_net",
        "virtio_console",
        "virtio_blk",
        "crc32c_generic",
        "crc32c_intel",
        "ext4",
    ),
    "initiator": ("sd_mod", "sg", "iscsi_tcp"),
    "multipath": ("scsi_dh_alua", "dm_multipath", "dm_round_robin", "dm_service_time"),
    "target": (
        "target_core_mod",
        "target_core_file",
        "iscsi_target_mod",
        "md5",
        "sha1_generic",
        "sha256_generic",
        "sha3_generic",
    ),
    "host": ("9pnet_virtio", "9p", "overlay"),
}
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Image:
    """What QEMU boots: a kernel and its initial RAM disk."""

    kernel: Path
    initrd: Path


def cache_folder():
    """Where images are kept: PPE_GUEST_CACHE, or ppe-guest in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PPE_GUEST_CACHE") or Path(home) / "ppe-guest")


def prepare(cache=None):
    """The image for the packages of today, made now (a minute) if it is not there."""
    cache = cache or cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = resolve(cache, PACKAGES)
        folder = cache / f"image-{_key(files)}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                _make(Path(work), fetch(cache, PACKAGES, files), Path(work) / "image")
                for old in cache.glob("image-*"):
                    shutil.rmtree(old)
                (Path(work) / "image").rename(folder)
        return Image(folder / "vmlinuz", folder / "initrd")


def _key(files):
    text = "\n".join(files).encode()
    parts = [(HERE / name).read_bytes() for name in SOURCES]
    return hashlib.blake2b(b"\0".join([text, *parts]), digest_size=8).hexdigest()


def _make(work, packages, image):
    """Unpack the packages, choose from them, and write the image."""
    system, kernel, root = work / "system", work / "kernel", work / "root"
    for package in packages:
        unpack(package, kernel if package.name.startswith("linux-image") else system)
    root.mkdir()
    _copy_programs(system, root)
    _copy_modules(kernel, root)
    image.mkdir()
    (found,) = kernel.glob("boot/vmlinuz-*")
    shutil.copy(found, image / "vmlinuz")
    with (image / "initrd").open("wb") as stream:
        cpio.write(root, stream)


def _matches(system, pattern):
    found = sorted(system.glob(pattern))
    assert found, f"no package has {pattern}"
    return found


def _copy_programs(system, root):
    programs = [path for pattern in PROGRAMS for path in _matches(system, pattern)]
    wanted = [*programs, system / "bin/busybox"]
    plugins = [*system.glob("lib/multipath/*.so")]
    for path in [*wanted, *_libraries(system, [*programs, *plugins])]:
        _copy(path, root / path.relative_to(system))
    for tree in TREES:
        (found,) = _matches(system, tree)
        _copy(found, root / tree)
    for name, to in LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(to)
    for source, name in (("init.sh", "init"), ("load.sh", "bin/load")):
        _copy(HERE / source, root / name)
        (root / name).chmod(0o755)
    for name, text in (("passwd", "root:x:0:0::/root:/bin/sh\n"), ("group", "root:x:0:\n")):
        (root / "etc" / name).write_text(text)


def _copy(source, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, to, follow_symlinks=not source.is_symlink() or _leads_out(source))


def _leads_out(link):
    """Whether a link is better copied as the file it leads to: libraries are looked up by link."""
    return ".so" in link.name


def _libraries(system, programs):
    """The shared libraries that the programs need, as the packages' own loader finds them."""
    loader = system / "lib64/ld-linux-x86-64.so.2"
    loader = system / "lib/x86_64-linux-gnu" / loader.readlink().name
    folders = [system / "lib/x86_64-linux-gnu", system / "usr/lib/x86_64-linux-gnu"]
    folders += [folder / "ceph" for folder in folders]
    search = ":".join(str(folder) for folder in [*folders, system / "lib"])
    found = {system / "lib64/ld-linux-x86-64.so.2"}
    for program in programs:
        with program.open("rb") as head:
            if program.is_symlink() or head.read(4) != b"\x7fELF":
                continue
        listed = subprocess.run(
            [loader, "--library-path", search, "--list", program],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "not found" not in listed.stdout, f"{program}: {listed.stdout}"
        found |= {Path(path) for path in re.findall(r"=> (/\S+)", listed.stdout)}
    return sorted(path for path in found if path.is_relative_to(system))


def _copy_modules(kernel, root):
    files = {path.stem.replace("-", "_"): path for path in kernel.glob("lib/modules/**/*.ko")}
    builtin = {
        Path(line).stem.replace("-", "_")
        for path in kernel.glob("lib/modules/*/modules.builtin")
        for line in path.read_text().splitlines()
    }
    for group, names in MODULES.items():
        ordered = []
        for name in names:
            _add(name, files, builtin, ordered)
        for name in ordered:
            _copy(files[name], root / "modules" / f"{name}.ko")
        text = "".join(f"{name}.ko\n" for name in ordered)
        (root / "modules" / f"{group}.list").write_text(text)


def _add(name, files, builtin, ordered):
    """Append a module behind all that it depends on, each once."""
    if name in ordered or name in builtin:
        return
    assert name in files, f"the kernel package has no module {name}"
    depends = _DEPENDS.search(files[name].read_bytes())
    for other in depends[1].decode().split(",") if depends and depends[1] else ():
        _add(other.replace("-", "_"), files, builtin, ordered)
    ordered.append(name)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"{prepare().initrd.parent}\n")
