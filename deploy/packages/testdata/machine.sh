#!/bin/sh
# Starts a copy of this machine under a systemd of its own, in namespaces: what it writes is
# in memory and gone with it, and what it does is not seen here.
#
#   machine.sh CGROUP SHARED    SHARED is /mnt there
set -eu
case ${3-} in
'')
	mkdir -p "$1"
	echo $$ >"$1/cgroup.procs"
	cd /
	exec unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --net --propagation private "$0" "$1" "$2" inside
	;;
esac
shared=$2
space=$(mktemp -d)
mount -t tmpfs tmpfs "$space"
root=$space/root
mkdir "$root" "$space/upper" "$space/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$space/upper,workdir=$space/work" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for dir in run tmp dev mnt; do mount -t tmpfs tmpfs $dir; done
mount --bind "$shared" mnt
for device in null zero full random urandom tty; do
	touch dev/$device
	mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Containers forbid packages to start what they install, and this machine has services of its
# own: only what tests start is started.
rm -f usr/sbin/policy-rc.d
# Nobody looks for manual pages there.
rm -f var/lib/man-db/auto-update
mkdir -p run/systemd/system
printf '[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n' >run/systemd/system/machine.target
mkdir old
pivot_root . old
# Credentials of units are mounted in a namespace of their own, and come here by propagation.
exec env -i container=agentstatsd PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . sh -c '
	umount -l /old && rmdir /old && mount --make-rshared / &&
	exec /lib/systemd/systemd --system --unit=machine.target --log-target=journal --show-status=no'
