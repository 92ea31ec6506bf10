#!/bin/busybox sh
# The guest's first process, from the initramfs: it builds the root that the program will see, then becomes the agent.
#
# It decides nothing: what to mount comes on the kernel's command line (ghv.*), disks are found by their serial.
# Under emulation a fork costs tens of milliseconds, so it forks only where a system call is needed, and never `cat`s.
# A guest that cannot be brought up says `CANNOT <why>` on the control port and powers off.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

read -r line </proc/cmdline
fs_base='' whole_disk='' network='' nics='' apps='' lines='' probe='' instant=''
for word in $line; do
    case $word in
    ghv.base=*) fs_base=${word#*=} ;;
    ghv.disk=*) whole_disk=${word#*=} ;;
    ghv.net=*) network=${word#*=} ;;
    ghv.nics=*) nics=${word#*=} ;; # cards in private networks
    ghv.probe=*) probe=${word#*=} ;;
    ghv.instant=*) instant=1 ;; # wait, before there is anything of a job's, to be saved or renewed
    ghv.lines=*) lines=${word#*=} ;; # CTL,OUT,ERR: serial lines, where the hypervisor has no virtio ports
    ghv.app=*) apps="$apps ${word#*=}" ;; # NUMBER:FORMAT:MOUNT
    esac
done

# Modules, in the order in which the image's maker lists them; drivers for what this guest has not are left out.
while read -r module; do
    name=${module##*/}
    case ${name%%.*} in
    virtio_net | net_failover | failover) [ -n "$network$nics" ] || continue ;;
    squashfs | erofs) case "$fs_base $apps" in *"${name%%.*}"*) ;; *) continue ;; esac ;;
    cdrom | isofs | evdev | button) continue ;;
    esac
    modules="$modules $module"
done </ghv/modules
for module in $modules; do insmod "$module"; done 2>/dev/null

# Wait for a device that the kernel makes a moment after its driver: at most about two seconds.
await() {
    tries=0
    until [ -e "$1" ] || [ $tries -ge 100 ]; do usleep 20000; tries=$((tries + 1)); done
}

control() { # sets $path to the device on which the pilot listens
    [ -z "$lines" ] || { path=/dev/${lines%%,*}; return; }
    for port in /sys/class/virtio-ports/*; do
        read -r name <"$port/name" && [ "$name" = ghv.ctl ] && path=/dev/${port##*/} && return 0
    done 2>/dev/null
    return 1
}

cannot() {
    control && echo "CANNOT $*" >"$path"
    echo "ghv: cannot boot: $*" >/dev/console
    sleep 1
    poweroff -f
}

disk() { # sets $path to the block device of that serial
    for block in /sys/block/*; do
        serial=''
        read -r serial <"$block/serial" # (false: the attribute ends without a newline)
        [ "$serial" = "$1" ] && path=/dev/${block##*/} && return 0
    done 2>/dev/null
    return 1
}

# Here, and nowhere later, a guest is saved, and one goes on that was started from what was saved: it has seen nothing but
# the image's bytes. With the pilot's word come the time and its own randomness, before anything else runs.
pristine() {
    control || cannot "the control port is absent"
    exec 4<>"$path"
    echo PRISTINE >&4
    until read -r verb renewal <&4 && [ "$verb" = RENEW ]; do usleep 10000; done
    printf "$renewal" >/ghv/renewal
    /ghv/renew </ghv/renewal
    failed=$?
    : >/ghv/renewal
    exec 4>&- # a port is opened once at a time
    [ $failed = 0 ] || cannot "renew the clock and the randomness: error $failed"
}

[ -e /dev/ubda ] || await /dev/vda # User-Mode Linux has its disks from the start
if [ -n "$probe" ]; then
    disk probe || cannot "the probe's disk is absent"
    . /ghv/probe
fi
mkdir -p /s /b /r
if [ -n "$fs_base" ]; then
    disk base || cannot "the base disk is absent"
    mount -t "$fs_base" -o ro "$path" /b || cannot "mount $path: the base layer is no $fs_base file system"
fi
[ -z "$instant" ] || pristine

disk scratch || cannot "the scratch disk is absent: no virtio-blk driver in the image's initrd?"
mount -t ext4 -o noatime "$path" /s || cannot "mount $path: the scratch disk is not ext4"

if [ -n "$fs_base" ]; then
    mount -t overlay -o lowerdir=/b,upperdir=/s/upper,workdir=/s/work overlay /r ||
        cannot "mount the overlay: no overlay module in the image's initrd?"
elif [ -n "$whole_disk" ]; then
    disk base || cannot "the disk is absent"
    found=''
    for candidate in "$path"[0-9]* "$path"; do
        [ -b "$candidate" ] || continue
        for type in ext4 xfs btrfs; do
            mount -t $type "$candidate" /r 2>/dev/null || continue
            if [ -e /r/etc/os-release ] || [ -L /r/etc/os-release ] || [ -x /r/sbin/init ]; then found=$candidate; break 2; fi
            umount /r
        done
    done
    [ -n "$found" ] || cannot "no partition of the disk holds a root (/etc/os-release or /sbin/init) in a file system" \
        "that the image's kernel knows (ext4, and xfs or btrfs where its initrd has them)"
else
    cannot "the kernel's command line names neither ghv.base nor ghv.disk"
fi

for app in $apps; do
    number=${app%%:*} rest=${app#*:}
    disk "app$number" || cannot "the disk of application layer $number is absent"
    mkdir -p "/r${rest#*:}"
    mount -t "${rest%%:*}" -o ro "$path" "/r${rest#*:}" || cannot "mount application layer $number at ${rest#*:}"
done

[ -d /r/run ] && [ -d /r/proc ] && [ -d /r/scratch ] || mkdir -p /r/proc /r/sys /r/dev /r/run /r/tmp /r/scratch
mount --move /proc /r/proc
mount --move /sys /r/sys
mount --move /dev /r/dev
mount -t tmpfs -o mode=755 tmpfs /r/run
mount --bind /s/scratch /r/scratch
mkdir -p /r/run/ghv /r/dev/shm /r/dev/pts
ln /bin/busybox /ghv/busybox
mount --bind /ghv /r/run/ghv
exec 7</s/job # the scratch disk itself will be out of sight
cd /r || cannot "enter the new root"
mount --move . /
ln -s busybox /ghv/sh
exec chroot . /run/ghv/busybox sh /run/ghv/agent "$network" "$lines"
