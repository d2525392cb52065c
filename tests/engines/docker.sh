# Docker, with the runtime as the default one; `docker run --runtime` is one of the scenarios.

setup() {
	mkdir -p /etc/docker
	rm -f /etc/docker/daemon.json
	local runtimes=
	[ "$runtime" != ultari ] || runtimes='"runtimes": {"ultari": {"path": "/usr/local/bin/ultari"}},'
	# live-restore: containers outlive the daemon. Without a network there is nobody to ask for names.
	cat >/etc/docker/daemon.json <<JSON
{$runtimes "default-runtime": "$runtime", "live-restore": true, "dns": ["127.0.0.1"]}
JSON
}

start() {
	daemon containerd containerd && eventually ctr version || return 1
	daemon dockerd dockerd --containerd /run/containerd/containerd.sock && eventually docker version || return 1
	docker image inspect box >/dev/null 2>&1 || docker load -q -i "$images/box.tar" >/dev/null
}

stop() {
	stop_daemon dockerd
	stop_daemon containerd
}

clean() {
	docker ps -aq | xargs -r docker rm -f
	docker volume ls -q | xargs -r docker volume rm -f
	rm -rf /tmp/*
}
