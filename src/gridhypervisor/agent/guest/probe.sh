# What the hypervisors of a node are compared by: run by init, on a disk of its own ($path), instead of a job.
#
# A word on the console ends each part; the pilot takes the time, for a guest's clock is the guest's to set. A part takes
# a processor some tens of milliseconds. What is between the start and the first word is the boot.
word() { echo "GHV-PROBE $1" >/dev/console; }

word boot
i=0
while [ $i -lt 20000 ]; do i=$((i + 1)); done
word compute
for i in 0 1 2 3 4 5 6 7 8 9; do /bin/busybox true; done
word processes
dd if=/dev/zero of="$path" bs=65536 count=64 conv=fsync 2>/dev/null
word disk
poweroff -f
sleep 60
