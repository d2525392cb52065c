# Podman as root, with the runtime as the default one.

setup() {
	rm -rf /etc/containers/containers.conf.d /etc/cni
	cat >/etc/containers/containers.conf <<CONF
[containers]
# The defaults raise limits, which this machine may not allow.
default_ulimits = ["nofile=20000:20000", "nproc=32000:32000"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "$runtime"
stop_timeout = 1
[engine.runtimes]
ultari = ["/usr/local/bin/ultari"]
[network]
network_backend = "netavark"
CONF
	printf '[storage]\ndriver = "overlay"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' \
		>/etc/containers/storage.conf
}

start() {
	podman load -q -i "$images/box.tar" >/dev/null
}

stop() { :; }

clean() {
	podman pod rm -fa -t 0
	podman rm -fa -t 0
	podman volume rm -fa
	pgrep -fx 'sleep 4242' | xargs -r kill -KILL # without cgroups nobody ends what shares the host's PIDs
	rm -rf /tmp/*
}
