#!/bin/sh
# A short tour, told from inside the container. Everything printed is looked up
# here and now; nothing is taken from config.json.

say() { printf '  %-14s %s\n' "$1" "$2"; }

# Runs a command that a fence should stop, and shows how it was refused.
refused() {
    label=$1
    shift
    if out=$("$@" 2>&1); then
        say "$label" "NOT refused: $*"
        broken=1
    else
        say "$label" "$(echo "$out" | tail -n 1)"
    fi
}

# bytes → MiB, or "no limit" for cgroup v2's "max" and v1's huge default.
mib() {
    case $1 in
    max | ????????????????*) echo "no limit" ;;
    *) echo "$(($1 / 1048576)) MiB" ;;
    esac
}

# A quota and its period, both in microseconds → a number of CPUs.
cpus() {
    case $1 in
    max | -1) echo "no limit" ;;
    *) awk -v quota="$1" -v period="$2" 'BEGIN { printf "%.2f CPU (%d of every %d µs)\n", quota / period, quota, period }' ;;
    esac
}

# The names of the bits set in the effective capability mask.
capabilities() {
    mask=$((0x$(awk '$1 == "CapEff:" { print $2 }' /proc/self/status)))
    bit=0
    for name in CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
        LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER \
        SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE \
        SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
        MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
        CHECKPOINT_RESTORE; do
        [ $((mask >> bit & 1)) = 0 ] || printf '%s ' "$name"
        bit=$((bit + 1))
    done
}

broken=0
cgroup=/sys/fs/cgroup

echo
echo "Hello from inside the fence."

echo
echo "Who I am"
say hostname "$(hostname)"
say user "$(id)"
say kernel "$(uname -sr), the host's: a container brings none of its own"

echo
echo "The processes I see (PID 1 is this script)"
/bin/ps -o pid,user,args >/tmp/ps
sed 's/^/  /' /tmp/ps

echo
echo "My network interfaces"
ip -o link | while read -r _ name flags _; do
    name=${name%%[@:]*}
    case $flags in
    *[\<,]UP[,\>]*) state=up ;;
    *) state=down ;;
    esac
    say "$name" "$state $(ip -o -4 address show dev "$name" | awk '{ print $4 }')"
done

echo
echo "My mounts"
awk '
    # One line for each place, not for each file covered in it.
    { split($4, option, ",") }
    $2 ~ "^/sys/fs/cgroup/" { controllers++; next }
    $2 ~ "^/(proc|sys)/" && $2 !~ "^/sys/fs/" { covers++; next }
    { printf "  %-14s %-8s %s\n", $2, $3, option[1] == "ro" ? "read-only" : "writable" }
    END {
        if (controllers) printf "  and %d cgroup v1 controllers in /sys/fs/cgroup\n", controllers
        printf "  and %d masks and read-only covers over parts of /proc and /sys\n", covers
    }' /proc/mounts

echo
echo "My limits"
if [ -e $cgroup/cgroup.controllers ]; then
    say memory "$(mib "$(cat $cgroup/memory.max)")"
    say cpu "$(cpus $(cat $cgroup/cpu.max))"
    say processes "$(cat $cgroup/pids.max)"
    limits=$cgroup/pids.max
    say "read from" "cgroup v2 in $cgroup"
else
    say memory "$(mib "$(cat $cgroup/memory/memory.limit_in_bytes)")"
    say cpu "$(cpus "$(cat $cgroup/cpu/cpu.cfs_quota_us)" "$(cat $cgroup/cpu/cpu.cfs_period_us)")"
    say processes "$(cat $cgroup/pids/pids.max)"
    limits=$cgroup/pids/pids.max
    say "read from" "cgroup v1 in $cgroup"
fi

echo
echo "My fences"
say capabilities "$(capabilities)"
case $(awk '$1 == "Seccomp:" { print $2 }' /proc/self/status) in
2) say seccomp "a filter is in force" ;;
*) say seccomp "NO filter is in force" && broken=1 ;;
esac
refused "system call" unshare --user true
refused "read-only /" sh -c 'echo gotcha >/etc/motd'
refused "limits" sh -c "echo max >$limits"
refused "kernel knob" sh -c 'echo 1 >/proc/sys/vm/drop_caches'
for file in /proc/kcore /proc/keys /proc/timer_list; do
    if [ -e $file ]; then
        say "masked file" "$file: I can read $(wc -c <$file) bytes of it"
        break
    fi
done
if echo note >/tmp/note; then
    say "but /tmp" "is mine to write to"
fi

echo
[ "$broken" = 0 ] || exit 1
echo "That was the tour. I leave with exit status 7."
exit 7
