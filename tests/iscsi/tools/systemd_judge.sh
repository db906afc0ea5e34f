# What is done to the target's unit while systemd runs, as root. Each finding is a line NAME=VALUE.
unit=ppe-target@disks
file=/etc/ppe/targets/disks.toml
url=iscsi://127.0.0.1/iqn.2026-01.org.example:disks/0

found() { echo "$1=$2" >>/mnt/found; }
property() { systemctl show --property "$1" --value $unit; }

systemd-sysusers
install -d -m 0750 -g ppe-target /etc/ppe/targets
install -m 0640 -g ppe-target /run/disks.toml $file

systemctl start $unit
found started $?
found status "$(property StatusText)"
found user "$(ps -o user:20= -p "$(property MainPID)")"
head -c 4096 /dev/urandom >/run/data
ppe iscsi write $url /run/data
ppe iscsi read $url --blocks 8 | cmp - /run/data
found data $?
ppe target stat --name disks
found stat $?

sed -i s/16M/32M/ $file
systemctl reload $unit
found reloaded $?
found blocks "$(ppe iscsi readcap $url --json | grep -o '"blocks": [0-9]*')"
cp $file /run/right
echo 'nonsense = ' >>$file
systemctl reload $unit
found reloaded_wrong $?
found after_wrong "$(property ActiveState)"
cp /run/right $file

kill -9 "$(property MainPID)"
for _ in $(seq 600); do
	if [ "$(property NRestarts)" = 1 ] && [ "$(property ActiveState)" = active ]; then break; fi
	sleep 0.1
done
found restarts "$(property NRestarts)"
ppe iscsi read $url --blocks 8 | cmp - /run/data
found data_after_kill $?

systemctl stop $unit
found stopped $?
found result "$(property Result)"
found sockets "$(ls /run/ppe-target)"
echo 'nonsense = ' >>$file
systemctl start $unit
found started_wrong $?
sleep 2.5 # longer than RestartSec
found wrong "$(property Result) $(property ExecMainStatus) $(property NRestarts)"
found segments "$(ls /dev/shm)"
