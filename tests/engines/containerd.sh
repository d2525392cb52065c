# containerd's own client: `ctr run --runc-binary`.

setup() { :; }

start() {
	daemon containerd containerd && eventually ctr version || return 1
	ctr images ls -q | grep -q . || ctr images import "$images/box.tar" >/dev/null
	ctr images tag --force "$(ctr images ls -q | head -n 1)" box >/dev/null
}

stop() {
	stop_daemon containerd
}

clean() {
	ctr tasks ls -q | xargs -r -n 1 ctr tasks kill -s KILL
	ctr tasks ls -q | xargs -r -n 1 ctr tasks rm -f
	ctr containers ls -q | xargs -r ctr containers rm
	rm -rf /tmp/*
}

with="--runc-binary $(command -v "$runtime")"
