"""LIO in the guest: Linux's kernel target, made by hand in its configfs tree.

One portal serves all its targets. A unit is a file in the guest's memory, so that what an initiator
wrote can be read beside the target.
"""

import shlex

PORT = 3260
ISER_PORT = 3261
UNIT_BYTES = 48 << 20
_CORE = "/sys/kernel/config/target/core"
_FABRIC = "/sys/kernel/config/target/iscsi"


class Lio:
    """The kernel target of one guest. `iser_address`: its portal is for iSER, on siw's address."""

    def __init__(self, guest, *, iser_address=None):
        self.guest = guest
        self._iser_address = iser_address
        guest.run(
            "load target; mountpoint -q /sys/kernel/config || "
            "mount -t configfs configfs /sys/kernel/config"
        )
        guest.run(f"mkdir -p {_FABRIC}")
        self._units = 0

    def add(self, iqn, *, user=None, password=None, own_user=None, own_password=None, **params):
        """A target with LUN 0; `params` are negotiation keys. With a user, CHAP is required.

        The path of the unit's file in the guest is returned.
        """
        backing, path = self._add_unit()
        group = f"{_FABRIC}/{iqn}/tpgt_1"
        lines = [f"mkdir -p {group}/lun/lun_0", f"ln -s {backing} {group}/lun/lun_0/unit"]
        attributes = {
            "generate_node_acls": 1,
            "cache_dynamic_acls": 1,
            "demo_mode_write_protect": 0,
            "authentication": int(user is not None),
        }
        accounts = {
            "userid": user,
            "password": password,
            "userid_mutual": own_user,
            "password_mutual": own_password,
        }
        lines += [_put(f"{group}/attrib/{name}", value) for name, value in attributes.items()]
        lines += [_put(f"{group}/auth/{name}", value) for name, value in accounts.items() if value]
        lines += [_put(f"{group}/param/{name}", value) for name, value in params.items()]
        lines += [*self._portal(group), _put(f"{group}/enable", 1)]
        self.guest.run("set -e\n" + "\n".join(lines))
        return path

    def _portal(self, group):
        if self._iser_address is None:
            return [f"mkdir {group}/np/0.0.0.0:{PORT}"]
        place = f"{group}/np/{self._iser_address}:{ISER_PORT}"
        # LIO listens over TCP first, and siw needs the same TCP port: that listener goes where
        # nobody is, into a network of its own.
        return [f"unshare -n mkdir {place}", _put(f"{place}/iser", 1)]

    def _add_unit(self):
        number = self._units
        self._units += 1
        path, place = f"/run/unit{number}", f"{_CORE}/fileio_{number}/unit"
        control = f"fd_dev_name={path},fd_dev_size={UNIT_BYTES},fd_buffered_io=1"
        lines = [f"truncate -s {UNIT_BYTES} {path}", f"mkdir -p {place}"]
        lines += [_put(f"{place}/control", control), _put(f"{place}/enable", 1)]
        lines += [_put(f"{place}/wwn/vpd_unit_serial", f"unit{number:04}")]
        self.guest.run("set -e\n" + "\n".join(lines))
        return place, path


def _put(path, value):
    # LIO keeps a line's end as a part of a name or secret.
    return f"printf %s {shlex.quote(str(value))} >{path}"
