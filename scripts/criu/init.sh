#!/bin/busybox sh
# The first process of the virtual machine. Its root is the host's, read-only; what the host shares
# to be written is /tmp/share. Runs /tmp/share/job with its output on the second serial line,
# leaves its exit status in /tmp/share/status and powers off.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /order

fail() {
	echo "init: $1"
	poweroff -f
}

for word in $(cat /proc/cmdline); do
	case $word in cache=*) cache=${word#cache=} ;; checkout=*) checkout=${word#checkout=} ;; esac
done

mount -t virtiofs -o ro host /newroot || fail 'cannot mount the root'
# Folders to be written to, in memory. What we need may lie below one of them: it stays visible.
mkdir /checkout
mount --bind "/newroot$checkout" /checkout
for folder in tmp run var/tmp; do
	mount -t tmpfs -o mode=1777 tmpfs "/newroot/$folder" || fail "cannot mount /$folder"
done
case $checkout in
/tmp/* | /run/* | /var/tmp/*)
	mkdir -p "/newroot$checkout"
	mount --move /checkout "/newroot$checkout"
	;;
esac
mkdir -p /newroot/tmp/share
mount -t virtiofs share /newroot/tmp/share || fail 'cannot mount the share'

# The kernel finds its own modules.
echo "$cache/modprobe" > /proc/sys/kernel/modprobe
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
stty -F /dev/ttyS1 raw -echo
for folder in proc sys dev; do mount --move "/$folder" "/newroot/$folder"; done
exec switch_root /newroot /bin/sh -c '
	export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	export HOME=/tmp LANG=C.UTF-8 TERM=dumb
	cd /tmp/share
	echo "init: up after $(cut -d" " -f1 /proc/uptime) s"
	/bin/sh ./job < /dev/null > /dev/ttyS1 2>&1
	echo $? > status
	sync
	echo "init: done after $(cut -d" " -f1 /proc/uptime) s"
	echo o > /proc/sysrq-trigger
	sleep 60
'
