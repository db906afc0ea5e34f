"""Writes a folder as a cpio archive in the newc format, which is what the kernel unpacks at boot
(Documentation/driver-api/early-userspace/buffer-format.rst). Owners are root, times are zero: the
same folder gives the same bytes.
"""

import os
import stat

_FIELDS = 13  # after the magic: 8 hexadecimal digits each


def _entry(name, mode, data=b"", inode=0):
    encoded = os.fsencode(name) + b"\0"
    # inode, mode, uid, gid, links, mtime, size, 4 device numbers, length of the name, check sum
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    assert len(fields) == _FIELDS
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def write(folder, stream):
    """Write everything below the folder: directories, files and symbolic links."""
    for inode, path in enumerate(sorted(folder.rglob("*")), start=1):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            data = os.fsencode(path.readlink())
        elif stat.S_ISREG(mode):
            data = path.read_bytes()
        elif stat.S_ISDIR(mode):
            data = b""
        else:
            raise ValueError(f"{path} is neither a file, a folder nor a link")
        stream.write(_entry(path.relative_to(folder).as_posix(), mode, data, inode))
    stream.write(_entry("TRAILER!!!", 0))
