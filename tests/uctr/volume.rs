//! Volumes and mounts (S81–S85).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Output, Sandbox, add};

/// A host with an image that has files in `/data`, and one that has a volume there.
struct Host(Sandbox);

impl Host {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let files = |archive: &mut crate::support::Archive| {
            let mut folder = tar::Header::new_gnu();
            folder.set_entry_type(tar::EntryType::Directory);
            folder.set_mode(0o2750);
            folder.set_uid(12);
            folder.set_gid(34);
            folder.set_mtime(0);
            folder.set_size(0);
            archive.append_data(&mut folder, "data", &b""[..]).unwrap();
            add(archive, tar::EntryType::Regular, "data/seed", 0o640, b"text");
        };
        sandbox.image("plain", &[], files);
        sandbox.image("with-volume", &["VOLUME /data"], files);
        Self(sandbox)
    }

    fn uctr(&self, args: &[&str]) -> Output {
        self.0.uctr(args)
    }

    fn says(&self, args: &[&str]) -> String {
        self.uctr(args).ok().stdout.trim().to_owned()
    }

    /// What a shell in a new container says.
    fn shell(&self, flags: &[&str], script: &str) -> String {
        let base = ["run", "--rm", "--network", "none"];
        self.says(&[&base, flags, &["plain", "sh", "-c", script]].concat())
    }

    fn fails(&self, flags: &[&str], words: &str) {
        let base = ["run", "--rm", "--network", "none"];
        self.uctr(&[&base, flags, &["plain", "true"]].concat()).fails(125, &[words]);
    }

    fn dir(&self) -> &Path {
        self.0.dir.path()
    }

    fn volumes(&self) -> Vec<String> {
        self.says(&["volume", "ls", "-q"]).lines().map(str::to_owned).collect()
    }

    /// What is in a volume.
    fn data(&self, name: &str) -> PathBuf {
        let all: Value = serde_json::from_str(&self.says(&["volume", "inspect", name])).unwrap();
        all[0]["Mountpoint"].as_str().unwrap().into()
    }
}

#[test]
fn s82_folders_of_the_host() {
    let host = Host::new();
    let folder = host.dir().join("some/where");
    let flag = format!("{}:/in", folder.display());
    assert_eq!(host.shell(&["-v", &flag], "echo out > /in/file; cat /in/file"), "out");
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "out\n");
    let read_only = format!("{flag}:ro");
    let said = host.shell(&["-v", &read_only], "cat /in/file; touch /in/file 2>&1 || true");
    assert!(said.starts_with("out") && said.contains("Read-only file system"), "{said}");
    // In the user's home.
    let mut command = host.0.command([
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "~/home:/in",
        "plain",
        "touch",
        "/in/file",
    ]);
    crate::support::output(command.env("HOME", host.dir())).ok();
    assert!(host.dir().join("home/file").exists());
    // A single file.
    let flag = format!("{}/file:/etc/one", folder.display());
    assert_eq!(host.shell(&["-v", &flag], "cat /etc/one"), "out");
    for (flag, words) in [
        ("x", "mount path must be absolute"),
        ("/a:b", "mount path must be absolute"),
        ("/a:/b:what", "invalid mode: what"),
        ("/a:/", "destination can't be '/'"),
        ("a/b:/c", "includes invalid characters for a local volume name"),
    ] {
        host.fails(&["-v", flag], words);
    }
    host.fails(&["-v", "/a:/b", "-v", "/c:/b"], "Duplicate mount point: /b");
    assert!(host.volumes().is_empty());
}

#[test]
fn s83_mount() {
    let host = Host::new();
    let folder = host.dir().join("there");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "text").unwrap();
    let bind = format!("type=bind,source={},target=/in,readonly", folder.display());
    let said = host.shell(&["--mount", &bind], "cat /in/file; touch /in/x 2>&1 || true");
    assert!(said.starts_with("text") && said.contains("Read-only file system"), "{said}");
    let flag = "type=tmpfs,target=/in,tmpfs-size=1m,tmpfs-mode=0700";
    let said = host.shell(&["--mount", flag], "stat -c %a /in; grep ' /in ' /proc/self/mounts");
    assert!(said.starts_with("700\n") && said.contains("size=1024k"), "{said}");
    assert!(said.contains("noexec") && said.contains("nosuid"), "{said}");
    host.shell(&["--mount", "source=named,target=/in"], "touch /in/file");
    assert!(host.data("named").join("file").exists());
    let said = host.shell(&["--tmpfs", "/in:exec,size=64k"], "grep ' /in ' /proc/self/mounts");
    assert!(said.contains("size=64k") && !said.contains("noexec"), "{said}");
    for (flag, words) in [
        ("type=bind,source=/no/such,target=/in", "bind source path does not exist: /no/such"),
        ("type=bind,source=/", "target is required"),
        ("type=other,target=/in", "mount type unknown"),
        (
            "type=bind,source=/,target=/in,tmpfs-size=1",
            "cannot mix 'tmpfs-size' with mount type 'bind'",
        ),
        ("colour=red", "unexpected key 'colour' in 'colour=red'"),
    ] {
        host.fails(&["--mount", flag], words);
    }
}

#[test]
fn s84_volumes_are_made_listed_and_removed() {
    let host = Host::new();
    assert_eq!(host.says(&["volume", "create", "--label", "colour=red", "one"]), "one");
    assert_eq!(host.says(&["volume", "create", "one"]), "one");
    let anonymous = host.says(&["volume", "create"]);
    assert_eq!(anonymous.len(), 64);
    host.says(&["volume", "create", "two"]);
    let list = host.says(&["volume", "ls"]);
    assert!(list.starts_with("DRIVER    VOLUME NAME\nlocal     "), "{list}");
    assert_eq!(host.says(&["volume", "ls", "-q", "-f", "label=colour"]), "one");
    let data = host.data("one");
    assert!(data.starts_with(host.dir().join("data/volumes")), "{data:?}");
    assert!(data.is_dir());
    let missing = host.uctr(&["volume", "inspect", "nope"]).fails(1, &["get nope: no such volume"]);
    assert_eq!(missing.stdout.trim(), "[]");
    host.uctr(&["volume", "create", "../x"]).fails(1, &["includes invalid characters"]);

    // One that a container uses, running or not, stays.
    let args = ["create", "--name", "user", "--network", "none", "-v", "one:/x", "plain", "true"];
    let id = host.says(&args);
    let words = format!("remove one: volume is in use - [{id}]");
    host.uctr(&["volume", "rm", "one"]).fails(1, &[&words]);
    assert_eq!(host.says(&["volume", "ls", "-q", "-f", "dangling=false"]), "one");
    assert!(host.says(&["volume", "prune", "-f"]).contains(&anonymous));
    assert_eq!(host.volumes(), ["one", "two"]);
    assert!(host.says(&["volume", "prune", "-f", "-a"]).starts_with("Deleted Volumes:\ntwo\n"));
    let both = host.uctr(&["volume", "rm", "nope", "one"]);
    assert_eq!((both.code, both.stdout.as_str()), (1, ""));
    host.says(&["rm", "user"]);
    let both = host.uctr(&["volume", "rm", "nope", "one"]);
    assert_eq!((both.code, both.stdout.as_str()), (1, "one\n"));
    assert!(!data.exists());
    host.says(&["volume", "rm", "-f", "nope"]);
}

#[test]
fn s85_the_first_use_copies_what_the_image_has() {
    let host = Host::new();
    let said = host.shell(&["-v", "data:/data"], "cat /data/seed; echo mine > /data/new");
    assert_eq!(said, "text");
    let data = host.data("data");
    let stat = fs::metadata(&data).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (12, 34, 0o2750));
    assert_eq!(fs::metadata(data.join("seed")).unwrap().mode() & 0o7777, 0o640);
    // It is there for the next container, and nothing is copied again.
    fs::remove_file(data.join("seed")).unwrap();
    assert_eq!(host.shell(&["-v", "data:/data"], "ls /data"), "new");
    assert_eq!(host.shell(&["-v", "empty:/data:nocopy"], "ls /data"), "");
    assert_eq!(host.volumes(), ["data", "empty"]);
    // A folder of the host hides what the image has.
    let flag = format!("{}:/data", host.dir().join("folder").display());
    assert_eq!(host.shell(&["-v", &flag], "ls /data"), "");
}

#[test]
fn s81_anonymous_volumes() {
    let host = Host::new();
    host.says(&["run", "--name", "user", "--network", "none", "with-volume", "touch", "/data/new"]);
    let [name] = &host.volumes()[..] else { panic!("{:?}", host.volumes()) };
    assert!(host.data(name).join("seed").exists() && host.data(name).join("new").exists());
    host.says(&["rm", "user"]);
    assert_eq!(host.volumes().len(), 1, "it stays without -v");
    host.says(&["volume", "prune", "-f"]);

    host.says(&["run", "--rm", "--network", "none", "with-volume", "true"]);
    assert!(host.volumes().is_empty(), "--rm takes it away");
    host.says(&[
        "run",
        "--name",
        "user",
        "--network",
        "none",
        "-v",
        "/x",
        "-v",
        "kept:/y",
        "plain",
        "true",
    ]);
    assert_eq!(host.volumes().len(), 2);
    host.says(&["rm", "-v", "user"]);
    assert_eq!(host.volumes(), ["kept"]);
}
