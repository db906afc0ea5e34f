#!/bin/busybox sh
# The guest's first process: mounts what a kernel offers, loads modules, brings up the network, and
# then runs the commands that arrive on the serial port `agent`, one after the other.
#
# A request is a line: NUMBER SECONDS COMMAND, the command in base64. The answer is a line, NUMBER
# STATUS LENGTH, and that many bytes of output. A command that takes longer is killed (status 137).

/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /var /root
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/udev
ln -sf /run /var/run

load base
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0 # the address that QEMU's user network gives its first guest
ip route add default via 10.0.2.2

port=
while [ -z "$port" ]; do
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name" 2>/dev/null)" = agent ]; then
            port=/dev/$(basename "$(dirname "$name")")
        fi
    done
    [ -n "$port" ] || sleep 0.1
done

exec 3<>"$port"
echo '0 0 0' >&3 # ready
while read -r number seconds command <&3; do
    echo "$command" | base64 -d >/run/command
    timeout -s KILL "$seconds" sh /run/command >/run/output 2>&1 </dev/null 3>&-
    status=$?
    cp /run/output /run/answer # whatever still runs in the background may go on writing
    echo "$number $status $(stat -c %s /run/answer)" >&3
    cat /run/answer >&3
done
poweroff -f
