# Kubernetes' path: containerd's CRI plugin with a class of pods for the runtime, and `cri`, a
# client for what a kubelet asks for.

setup() {
	mkdir -p /etc/containerd /etc/cni/net.d /run/cri
	cat >/etc/containerd/config.toml <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "pause:latest"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ultari]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ultari.options]
BinaryName = "/usr/local/bin/ultari"
TOML
	cat >/etc/cni/net.d/10-pods.conflist <<'JSON'
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
	protoc --proto_path="$here" --python_out=/run/cri cri.proto
}

start() {
	daemon containerd containerd && eventually ctr version || return 1
	local image
	for image in box pause; do
		ctr -n k8s.io images ls -q | grep -q "$image:" || ctr -n k8s.io images import "$images/$image.tar" >/dev/null
	done
	eventually cri ready
}

stop() {
	stop_daemon containerd
}

clean() {
	cri rmp -a
	rm -rf /tmp/*
}

cri() {
	PYTHONPATH=/run/cri /usr/bin/python3 "$here/cri" "$@"
}
