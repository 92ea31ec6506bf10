#!/run/ghv/busybox sh
# The guest's agent, its first process: obeys the pilot's lines on ghv.ctl, and stays able to whatever the program does.
#
# Lines in:  STAGE · MEMBER INDEX NAME SITE NODE (one for each of a gang) · RUN MARKER · STOP SECONDS · PACK FUNCTION ·
#            PROBE N · INPUT N DATA · EXEC N SCRIPT · END N · PING N · FREEZE N · RENEW DATA · THAW · POWEROFF
# Lines out: READY UPTIME · STAGED · EXIT CODE CPU_USEC OOM_KILLS FREE_BYTES · NOOUTPUT INDEX · PACKED ·
#            PACKFAIL WHY · PONG N FREE_BYTES · FROZEN N 1 (or 0: it does not stand still) · RENEWED ERRNO · MOVE WHY ·
#            PROBED N CODE WORDS · TOOK N · PRINTED N out|err DATA · EXECUTED N CODE · CANNOT WHY
# SCRIPT and DATA are in base64.
# What the program is comes on the scratch disk, as the file that init left open on descriptor 7 (written by the pilot,
# every word of it quoted): it sets $user, $folder, $path, $host, $resolvers and $domains, and defines program, which
# calls start, nics, which calls nic, and outputs, restart and both, which call pack; surroundings, which sets the
# program's environment; and ready, which ends with 0 where the program serves.
# The program's streams go through pipes, so that their end is seen; MARKER on each port says that all has been sent.
# It runs in a control group of its own: there it can be signalled whole, its CPU time is known, and when it eats all
# the memory it is the one that is killed. What it writes into /run/ghv/move is why it wants to go on elsewhere.
network=$1
lines=$2 # the serial lines that stand for the ports, as CTL,OUT,ERR; none where there are virtio ports
job=/sys/fs/cgroup/job
pipes=/run/ghv

if [ -n "$lines" ]; then
    middle=${lines#*,}
    exec 3<>"/dev/${lines%%,*}" 5>"/dev/${middle%,*}" 6>"/dev/${lines##*,}"
    for line in 3 5 6; do stty raw -echo <&$line; done # else they are terminals: bytes would be changed, and echoed
fi
[ -n "$lines" ] || for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    case $name in
    ghv.ctl) exec 3<>"/dev/${port##*/}" ;;
    ghv.out) exec 5>"/dev/${port##*/}" ;;
    ghv.err) exec 6>"/dev/${port##*/}" ;;
    esac
done

say() { echo "$*" >&3; }

free_bytes() { # of /scratch, in $free; nothing when the guest cannot even fork
    set -- $(stat -f -c '%a %S' /scratch)
    free=$((${1:-0} * ${2:-0}))
}

# What is of this guest alone, however it began: the machine's id where the image has one, and $mac.
identify() {
    read -r uuid </proc/sys/kernel/random/uuid
    IFS=-
    set -- $uuid
    unset IFS
    [ ! -f /etc/machine-id ] || echo "$1$2$3$4$5" >/etc/machine-id
    tail=${5#??????} middle=${5#????????}
    mac=52:54:00:${tail%????}:${middle%??}:${5#??????????}
}

nic() { # NUMBER MAC ADDRESS MASK MTU, of a card in a private network
    card=eth$(($1 + 0${network:+1})) # behind the one that the hypervisor itself answers, where there is one
    [ -z "$lines" ] || ip link set "vec$1" name $card
    ifconfig $card hw ether "$2" mtu "$5" && ifconfig $card "$3" netmask "$4" up ||
        say "CANNOT set up the card $card of a private network: has the image's initrd a driver for it (virtio_net)?"
}

stage() {
    identify
    ifconfig lo 127.0.0.1 up
    hostname "$host"
    chown 0:0 / /scratch # made by the pilot, whoever that is
    if [ -n "$network" ]; then
        ifconfig eth0 hw ether $mac
        ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up && route add default gw 10.0.2.2
        resolvers="$resolvers 10.0.2.3" # after those that know the members of the private networks
    fi
    nics
    if [ -n "$resolvers" ]; then
        rm -f /etc/resolv.conf
        {
            [ -z "$domains" ] || echo "search $domains"
            for address in $resolvers; do echo "nameserver $address"; done
        } >/etc/resolv.conf
    fi
    mount -t devpts devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control
    mkdir $job
    read -r _ total _ </proc/meminfo # KiB; some is kept for the kernel and for us
    echo $(((total - total / 64 - 16384) * 1024)) >$job/memory.max
    mkfifo -m 666 $pipes/out $pipes/err
    umask 0; : >$pipes/move; umask 22
    if ! chown -R "$user:" "$folder"; then
        say "CANNOT give the job's folder to the image's user $user: is it in the image's /etc/passwd?"
        return
    fi
    say STAGED
}

# Runs as the user, in a shell of its own. The file is looked for here because this shell would prefer its own
# applets to the image's programs.
launch='
case $1 in
*/*) file=$1 ;;
*)
    IFS=:
    for folder in $PATH; do [ -f "$folder/$1" ] && [ -x "$folder/$1" ] && file=$folder/$1 && break; done
    unset IFS folder
    [ -n "$file" ] || { echo "ghv: $1: no such program in the guest; PATH is $PATH" >&2; exit 127; }
    ;;
esac
shift
SHELL=/bin/sh
exec "$file" "$@"'

before='' # words of a program that is to run what is started, with a limit of its time
start() { # COMMAND ARGS…; never returns
    cd "$folder" || exit 126
    export PATH="$path"
    if [ "$user" = root ]; then
        export HOME=/root USER=root LOGNAME=root
        exec $before /run/ghv/busybox sh -c "$launch" sh "$@"
    fi
    # After `--`: su would take the options of the program for its own.
    exec $before /run/ghv/busybox su -s /run/ghv/sh -c "$launch" -- "$user" sh "$@"
}

run() {
    cat <$pipes/out >&5 3>&- 6>&- 7<&- &
    streams=$!
    cat <$pipes/err >&6 3>&- 5>&- 7<&- &
    streams="$streams $!"
    (
        echo 0 >$job/cgroup.procs
        [ ! -e $pipes/stopped ] || exit 143 # asked to before it was there to be told: as if TERM had reached it
        echo 0 >/proc/self/oom_score_adj
        exec 3>&- 5>&- 6>&- 7<&-
        program
    ) </dev/null >$pipes/out 2>$pipes/err
    code=$?
    echo 1 >$job/cgroup.kill # what it left behind in the background; also lets the pipes end
    wait $streams
    printf %s "$1" >&5
    printf %s "$1" >&6
    read -r _ cpu <$job/cpu.stat
    while read -r event count; do [ "$event" = oom_kill ] && oom=$count; done <$job/memory.events
    free_bytes
    say "EXIT $code ${cpu:-0} ${oom:-0} $free" # each a number, whatever could not be read
}

# In the program's control group: what is left of it ends with the program, and so that it is not us whom the kernel
# kills when it takes all the memory.
beside() {
    echo 0 >$job/cgroup.procs
    echo 0 >/proc/self/oom_score_adj
    exec 3>&- 5>&- 6>&- 7<&-
}

knock() { timeout "$1" nc -w "$1" 127.0.0.1 "$2" -e /run/ghv/busybox true; }
fetch() { timeout "$1" wget -q -O /dev/null "$2"; }

probe() { # NUMBER
    (
        beside
        ready
    ) </dev/null >$pipes/probed 2>&1
    code=$?
    why=''
    read -r -n 200 why <$pipes/probed
    say "PROBED $1 $code $why"
}

printed() { # FILE: what comes, up to a MiB; the rest is dropped, so that it ends of itself
    head -c 1048576 >"$1"
    cat >/dev/null
}

execute() { # NUMBER SCRIPT
    at=$pipes/exec.$1
    echo "$2" | base64 -d >$at
    : >>$at.in
    {
        {
            (
                read -r process _ </proc/self/stat
                echo "$process" >$at.process
                beside
                surroundings
                . $at
            ) <$at.in 2>&9 9>&-
            echo $? >$at.code
        } 9>&1 >&8 8>&- | printed $at.err
    } 8>&1 | printed $at.out
    for stream in out err; do # each line in one piece: others are written meanwhile
        base64 -w 1536 <$at.$stream | awk "{ print \"PRINTED $1 $stream \" \$0; fflush() }" >&3
    done
    read -r code <$at.code
    say "EXECUTED $1 $code"
    rm -f $at $at.in $at.process $at.code $at.out $at.err
}

take() { # NUMBER DATA: what comes next of its input
    echo "$2" | base64 -d >>$pipes/exec.$1.in
    say "TOOK $1"
}

finish() { # NUMBER: of a command that takes too long
    process=''
    read -r process <$pipes/exec.$1.process && kill -TERM "$process"
}

stop() {
    : >$pipes/stopped
    # One that has just died may be listed as 0, and to `kill` 0 is everybody here: run, its streams, all but ourselves.
    while read -r process; do [ "$process" -gt 0 ] && kill -TERM "$process"; done <$job/cgroup.procs 2>/dev/null
    (
        sleep "$1"
        echo 1 >$job/cgroup.kill
    ) 3>&- 5>&- 6>&- &
}

# Before the guest is saved: the program stands still until THAW, so that one that is taken up does nothing before it was
# renewed. What is at work in the kernel stands still a little later.
freeze() {
    echo 1 >$job/cgroup.freeze
    frozen=0 tries=0
    while :; do
        while read -r event value; do [ "$event" = frozen ] && frozen=$value; done <$job/cgroup.events
        [ "$frozen" = 0 ] && [ $tries -lt 250 ] || break
        usleep 20000
        tries=$((tries + 1))
    done
    say "FROZEN $1 $frozen"
}

# After it was taken up: the time, and randomness that no other has that was taken up from the same.
renew() {
    printf "$1" >$pipes/renewal
    $pipes/renew <$pipes/renewal
    say "RENEWED $?"
    : >$pipes/renewal
}

asks() {
    # Whether the program wants to be moved; forks nothing, since every ping comes by.
    [ ! -s $pipes/move ] || { why=''; read -r -n 200 why <$pipes/move; say "MOVE $why"; }
}

exists() { [ -e "$1" ] || [ -L "$1" ]; }

pack() { # PATTERNS…
    cd "$folder" || return
    IFS='' # unquoted words below are globbed and never split
    number=0
    words=''
    for pattern; do
        if exists $pattern; then
            eval "pattern_$number=\$pattern"
            words="$words \$pattern_$number"
        else
            say "NOOUTPUT $number"
        fi
        number=$((number + 1))
    done
    for block in /sys/block/*; do
        serial=''
        read -r serial <"$block/serial"
        [ "$serial" = out ] && device=/dev/${block##*/}
    done
    if [ -n "$words" ] && ! eval "tar -cf $device -- $words" 2>$pipes/why; then
        read -r why <$pipes/why
        say "PACKFAIL $why"
        return
    fi
    say PACKED
}

echo -1000 >/proc/self/oom_score_adj
. /proc/self/fd/7
read -r up _ </proc/uptime
say "READY $up"
while :; do
    # End of file means that nobody is connected at the moment.
    read -r verb word <&3 || { usleep 100000; continue; }
    case $verb in
    STAGE) stage 2>/dev/console ;;
    MEMBER) echo "$word" >>$pipes/gang ;;
    RUN) run "$word" 2>/dev/console & ;;
    PROBE) probe "$word" 2>/dev/console & ;;
    EXEC) execute $word 2>/dev/console & ;;
    INPUT) take $word 2>/dev/console ;;
    END) finish "$word" 2>/dev/null ;;
    STOP) stop "$word" ;;
    PACK) ("$word") 2>/dev/console & ;;
    FREEZE) freeze "$word" 2>/dev/console ;;
    RENEW) renew "$word" 2>/dev/console ;;
    THAW) echo 0 >$job/cgroup.freeze ;;
    PING) asks; free_bytes; say "PONG $word $free" ;;
    POWEROFF) poweroff -n -f ;;
    esac
done
