# Functions shared by tests/package and tests/service: a throw-away system, queries of systemd and the agent in it,
# and waiting. Sourced by them from the repository's root. The sourcing script defines a function `inside` and sets
# $bin, the agent, and $broker and $topic, where its lines go.
# shellcheck shell=bash disable=SC2154

begun=$(cut -d' ' -f1 /proc/uptime)
script=tests/$(basename "$0")
die() { printf '%s: %s\n' "$script" "$*" >&2; exit 1; }
say() { printf '%6.1f s  %s\n' "$(awk -v since="$begun" '{ print $1 - since }' /proc/uptime)" "$*"; }

# ---- the throw-away system ------------------------------------------------------------------------------------------

# Setup outside of it; afterwards $share is a folder visible from outside and inside.
prepare() {         # prepare TOOL…
	[ "$(id -u)" = 0 ] || die "needs root, to boot a container"
	tests/install java mvn kcat flock jq python3 "$@"
	tests/kafka/broker install 4.1
	share=${IN_SYSTEMD_OUT:-}
	[ -n "$share" ] || share=$(mktemp -d)
	mkdir -p "$share"
}

# Runs `inside`, on this machine with --here, else in a throw-away container that boots systemd.
run_inside() {      # run_inside SECONDS [--here]
	if [ "${2:-}" = --here ]; then
		[ -d /run/systemd/system ] || die "--here: this machine does not run systemd"
		inside
		return
	fi
	IN_SYSTEMD_OUT=$share IN_SYSTEMD_LIMIT=${IN_SYSTEMD_LIMIT:-$1} tests/in-systemd "$script" inside "$share" "${READY_MS:-1000}"
}

# ---- queries --------------------------------------------------------------------------------------------------------

property() { systemctl show logagent --property "$1" --value; }
active() { [ "$(property ActiveState)" = active ]; }
is_another() {      # is_another PID: it runs as a different process; checks the process first, since its exit is noticed late
	local pid
	pid=$(property MainPID)
	[ "$pid" != 0 ] && [ "$pid" != "$1" ] && active
}
kept_is() { [ "$(property NFileDescriptorStore)" = "$1" ]; }
journal() { journalctl -u logagent --no-pager "$@"; }
said() { journal -o cat | grep -q -- "$1"; }
status() { "$bin" status --json --state-dir /var/lib/private/logagent; }
# One topic may hold part of the memory.
memory_is_full() { [ "$(status | jq .memory.used)" -gt 2000000 ]; }
in_topic() { kcat -C -e -q -b "$broker" -t "$topic" -o beginning 2>/dev/null </dev/null; }

wait_until() {      # wait_until SECONDS WHAT COMMAND…
	local until=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		[ $SECONDS -lt $until ] || { journal -n 60 -o cat; status || true; die "not in time: $what"; }
		sleep 0.1
	done
}

# ---- actions ------------------------------------------------------------------------------------------------------

restarted_by() {    # restarted_by WHAT COMMAND…: afterwards the agent is another process
	local pid
	pid=$(property MainPID)
	say "$1"
	shift
	"$@"
	wait_until 30 "systemd starts it again" is_another "$pid"
}

# Shortens the watchdog to 4 s, and starts the agent with it.
watchdog_of_4s() {
	install -d /etc/systemd/system/logagent.service.d
	printf '[Service]\nWatchdogSec=4s\n' >/etc/systemd/system/logagent.service.d/watchdog.conf
	systemctl daemon-reload
	systemctl restart logagent
}

# Stops one thread of the agent with ptrace until the watchdog has killed the agent and systemd has restarted it.
stop_thread_until_restart() { # stop_thread_until_restart NAME
	local since thread tracer
	since=$(date '+%F %T')
	thread=$(grep -lx "$1" /proc/"$(property MainPID)"/task/*/comm | cut -d/ -f5)
	python3 - "$thread" <<-'END' &
		import ctypes, os, sys
		libc, thread = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
		assert libc.ptrace(0x4206, thread, None, None) == 0, "PTRACE_SEIZE"
		assert libc.ptrace(0x4207, thread, None, None) == 0, "PTRACE_INTERRUPT"
		ALL = 0x40000000  # __WALL: a thread that is not a child
		os.waitpid(thread, ALL)  # stopped
		os.waitpid(thread, ALL)  # its exit, which waits for its tracer
	END
	tracer=$!
	restarted_by "thread $1 is stopped" true
	kill $tracer 2>/dev/null || true
	said "thread $1 is stuck" || die "it does not report that $1 is stuck"
	journal --since "$since" | grep -q 'Watchdog timeout' || die "that was not the watchdog"
}
