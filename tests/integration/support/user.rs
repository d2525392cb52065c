//! An ordinary user of the host, whom the tests make up: in a mount namespace of its own each call
//! sees an /etc/passwd that knows the user and an /etc/subuid and /etc/subgid that give it ids.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{Sandbox, host, program, wait_until};

/// The user's own id, and its group's.
pub const UID: u32 = 54321;
/// The first of the ids that /etc/subuid and /etc/subgid give it.
pub const SUBORDINATE: u32 = 2_000_000;
/// How many these are.
pub const COUNT: u32 = 65536;
/// The user's name.
pub const NAME: &str = "fencer";

/// What each call goes through: `…/as-user PROGRAM ARG…`.
static AS_USER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = host().base.join("user");
    fs::create_dir(&folder).unwrap();
    let subordinate = format!("{NAME}:{SUBORDINATE}:{COUNT}\n");
    for (file, line) in [
        ("passwd", format!("{NAME}:x:{UID}:{UID}::/:/bin/sh\n")),
        ("group", format!("{NAME}:x:{UID}:\n")),
        ("subuid", subordinate.clone()),
        ("subgid", subordinate),
    ] {
        let old = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
        fs::write(folder.join(file), old + &line).unwrap();
    }
    // Where the program under test lies its users may not get to.
    let copy = folder.join("ultari");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!(
        "#!/bin/sh\n\
         exec unshare --mount --propagation private /bin/sh -c '\n\
         for file in passwd group subuid subgid; do\n\
         mount --bind {0}/$file /etc/$file || exit 125\n\
         done\n\
         exec setpriv --reuid {UID} --regid {UID} --clear-groups --inh-caps=-all \"$@\"' sh \"$@\"\n",
        folder.display()
    );
    let path = folder.join("as-user");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
});

/// The script that runs its arguments as the user.
pub fn as_user() -> &'static Path {
    &AS_USER
}

/// Why this host has no such users, if it has not.
pub fn missing() -> Option<String> {
    let absent = |path: &&str| !Path::new(path).exists();
    if let Some(file) = ["/etc/subuid", "/etc/subgid"].iter().find(|path| absent(path)) {
        return Some(format!("there is no {file}"));
    }
    let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    if sysctl("kernel/unprivileged_userns_clone").trim() == "0"
        || sysctl("kernel/apparmor_restrict_unprivileged_userns").trim() == "1"
        || sysctl("user/max_user_namespaces").trim() == "0"
    {
        return Some("this host lets no ordinary user make a user namespace".into());
    }
    None
}

/// The same, for tests that map more than one id.
pub fn missing_with_helpers() -> Option<String> {
    let helper = Path::new("/usr/bin/newuidmap").exists();
    let absent = || (!helper).then(|| "newuidmap is missing: install the package uidmap".into());
    missing().or_else(absent)
}

impl Sandbox {
    /// A bundle of the user's, with the config.json that the user gets from `spec --rootless`; the
    /// program is called by the user. With a shell script for the container.
    pub fn of_user(name: &str, script: &str) -> Sandbox {
        let mut sandbox = Sandbox::new(name);
        sandbox.give_to_user();
        let bundle = sandbox.bundle();
        sandbox.bare_call().args(["spec", "--rootless", "--bundle"]).arg(&bundle).output().ok();
        let text = fs::read_to_string(bundle.join("config.json")).unwrap();
        sandbox.config = serde_json::from_str(&text).unwrap();
        sandbox.script(script);
        sandbox.config["root"]["readonly"] = json!(false);
        let marker = json!(sandbox.marker());
        let process = &mut sandbox.config["process"];
        process["terminal"] = json!(false);
        process["env"].as_array_mut().unwrap().push(marker);
        sandbox
    }

    /// Makes the bundle and the state folder the user's, and all calls too.
    pub fn give_to_user(&mut self) {
        fs::create_dir(self.root()).unwrap();
        for folder in [self.dir.clone(), self.root(), self.bundle()] {
            chown(folder, Some(UID), Some(UID)).unwrap();
        }
        self.give_rootfs(UID);
        self.program = as_user().with_file_name("ultari");
        self.wrapper = Some(format!("exec {} \"$@\"", as_user().display()));
    }

    /// Makes `id` the owner of the folders of the root filesystem; its programs are shared with
    /// other sandboxes.
    pub fn give_rootfs(&self, id: u32) {
        for folder in ["", "dev", "etc", "mnt", "proc", "root", "sys", "tmp", "usr", "usr/bin"] {
            chown(self.rootfs().join(folder), Some(id), Some(id)).unwrap();
        }
    }

    /// Maps the user to root, and after it the ids that /etc/subuid and /etc/subgid give.
    pub fn map_range(&mut self) {
        let maps = range();
        self.config["linux"]["uidMappings"] = maps.clone();
        self.config["linux"]["gidMappings"] = maps;
    }
}

/// Root is the user, all else are its subordinate ids.
pub fn range() -> Value {
    json!([
        {"containerID": 0, "hostID": UID, "size": 1},
        {"containerID": 1, "hostID": SUBORDINATE, "size": COUNT}
    ])
}

/// A user namespace of the user's with all its ids, and with mount, network and IPC namespaces in
/// it, as podman keeps them without root; lives as long as this.
pub struct UserNamespace {
    child: Child,
}

impl UserNamespace {
    /// Makes it.
    pub fn new() -> UserNamespace {
        let mut command = Command::new(as_user());
        command.args(["unshare", "--user", "--map-root-user", "--map-auto"]);
        command.args(["--mount", "--net", "--ipc", "/bin/sleep", "600"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = host().spawn(&mut command);
        let made = UserNamespace { child };
        wait_until("the user namespace is there", || {
            let name = fs::read_to_string(format!("/proc/{}/comm", made.child.id()));
            name.is_ok_and(|name| name == "sleep\n")
        });
        made
    }

    /// The path of a namespace, by its name in /proc/PID/ns.
    pub fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.child.id())
    }

    /// A script that runs its arguments as root of the user namespace, in its mount namespace.
    pub fn wrapper(&self) -> String {
        let pid = self.child.id();
        format!("exec nsenter --target {pid} --user --mount --setuid 0 --setgid 0 \"$@\"")
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        host().forget(self.child.id());
    }
}
