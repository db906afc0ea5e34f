#!/bin/bash
# Boots systemd in namespaces, on top of this machine's file system, none of which it can change:
#   systemd_boot.sh SPACE SCRIPT CGROUP DIRECTORY...
# SPACE is an empty folder, of which `out` stays; SCRIPT is run by systemd as root when it is up, and
# then everything ends; CGROUP is where the caller put it in each hierarchy; each DIRECTORY can be
# seen there, by everybody. Exit 77: this machine does not allow it.
set -eu
space=$1 script=$2 cgroup=$3
shift 3

if [ -z "${PPE_TEST_INSIDE:-}" ]; then
	for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
		if [ -e "$hierarchy/$cgroup/cgroup.procs" ]; then echo $$ >"$hierarchy/$cgroup/cgroup.procs"; fi
	done
	export PPE_TEST_INSIDE=1
	exec unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup \
		"$0" "$space" "$script" "$cgroup" "$@"
fi

root=$space/disk/root
{
	mount --make-rprivate /
	mkdir "$space/disk"
	mount -t tmpfs tmpfs "$space/disk"
	mkdir "$space/disk/upper" "$space/disk/work" "$root"
	mount -t overlay overlay \
		-o "lowerdir=/,upperdir=$space/disk/upper,workdir=$space/disk/work" "$root"
	mount -t proc proc "$root/proc"
	mount -t sysfs -o ro sysfs "$root/sys"
	if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
		mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
	else
		mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
		mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
		mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
		mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
	fi
	mount -t tmpfs tmpfs "$root/run"
	mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
	mount -t tmpfs tmpfs "$root/dev"
	for name in null zero full random urandom tty; do
		touch "$root/dev/$name"
		mount --bind "/dev/$name" "$root/dev/$name"
	done
	ln -s /proc/self/fd "$root/dev/fd"
	mkdir "$root/dev/pts" "$root/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
	mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
	for directory in "$@"; do
		mkdir -p "$root$directory"
		mount --rbind "$directory" "$root$directory"
		parent=$(dirname "$directory")
		while [ "$parent" != / ]; do
			chmod a+rx "$root$parent" 2>/dev/null || true
			parent=$(dirname "$parent")
		done
	done
	mkdir -p "$root/mnt"
	mount --bind "$space/out" "$root/mnt"
	touch "$root/dev/console"
	mount --bind "$space/out/console" "$root/dev/console"
	ip link set lo up
} || exit 77

units=$root/etc/systemd/system
ln -sf /dev/null "$units/tmp.mount" # it would hide what was bound below /tmp
cp "$script" "$root/run/judge"
cp -a "$space/files/." "$root/"
cat >"$units/judge.target" <<'UNIT'
[Unit]
Requires=basic.target judge.service
AllowIsolate=yes
UNIT
cat >"$units/judge.service" <<'UNIT'
[Unit]
DefaultDependencies=no
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash /run/judge
StandardOutput=append:/mnt/said
StandardError=append:/mnt/said
TimeoutStartSec=300
ExecStopPost=/bin/systemctl poweroff --force --force
UNIT
: >"$root/etc/machine-id"
exec env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	chroot "$root" /lib/systemd/systemd --log-target=console --show-status=0 --unit=judge.target
