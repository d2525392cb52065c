# Buildah: RUN steps, and commands in working containers.

setup() {
	# Debian's containers.conf of Podman's is Buildah's too; the runtime comes from the environment.
	printf '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=32000:32000"]\n[engine]\ncgroup_manager = "cgroupfs"\n' \
		>/etc/containers/containers.conf
	printf '[storage]\ndriver = "overlay"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' \
		>/etc/containers/storage.conf
}

start() {
	buildah pull -q "docker-archive:$images/box.tar" >/dev/null
}

stop() { :; }

clean() {
	buildah rm -a
	rm -rf /tmp/*
}

# `crun` is Buildah's own default.
export BUILDAH_RUNTIME=$runtime
