# Podman as an ordinary user, who exists in this world only.

. "$here/podman.sh"
eval "podman_$(declare -f setup)"

# How everything of this engine is run: as the user, unless that is who runs this.
as_user=()
[ "$(id -u)" != 0 ] || as_user=(setpriv --reuid 12345 --regid 12345 --clear-groups
	env HOME=/home/ann USER=ann XDG_RUNTIME_DIR=/run/user/12345)

setup() {
	echo 'ann:x:12345:12345::/home/ann:/bin/bash' >>/etc/passwd
	echo 'ann:x:12345:' >>/etc/group
	echo 'ann:2000000:65536' | tee /etc/subuid >/etc/subgid
	mkdir -p "$folder/home/ann"
	install -d -o 12345 -g 12345 -m 700 "$folder/home/ann" /run/user/12345
	mount --bind "$folder/home" /home
	# Where no udev has opened these to everybody.
	mknod -m 666 "$folder/tun" c 10 200 && mount --bind "$folder/tun" /dev/net/tun
	mknod -m 666 "$folder/fuse" c 10 229 && mount --bind "$folder/fuse" /dev/fuse
	podman_setup
}

podman() {
	"${as_user[@]}" /usr/bin/podman "$@"
}
