//! Options of mounts: recursive attributes, remounting, propagation across the border, labels.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Json, Output, Sandbox, bind};

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// Runs the container in a mount namespace made by the shell commands `setup`.
fn run_after(sandbox: &Sandbox, setup: &str) -> Output {
    let script =
        format!("exec unshare -m --propagation private sh -c '{setup} && exec \"$@\"' sh \"$@\"");
    sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output()
}

/// The options of the mount at `destination`, in the report of the guest.
#[track_caller]
fn options<'a>(report: &'a Value, destination: &str) -> Vec<&'a str> {
    let mount = report.mount(destination).unwrap_or_else(|| panic!("no mount at {destination}"));
    mount.texts("/options")
}

/// A folder that holds another, to mount on, which holds a third.
fn nested(sandbox: &Sandbox) -> PathBuf {
    let folder = sandbox.dir.join("data");
    fs::create_dir_all(folder.join("sub")).unwrap();
    folder
}

#[test]
fn recursive_attributes_reach_every_mount_below() {
    // The word, options of the nested mounts before, what mountinfo shows then and what not.
    let cases: &[(&str, &str, &[&str], &[&str])] = &[
        ("rro", "rw", &["ro"], &[]),
        ("rrw", "ro", &["rw"], &[]),
        ("rnosuid", "rw", &["nosuid"], &[]),
        ("rsuid", "nosuid", &[], &["nosuid"]),
        ("rnodev", "rw", &["nodev"], &[]),
        ("rdev", "nodev", &[], &["nodev"]),
        ("rnoexec", "rw", &["noexec"], &[]),
        ("rexec", "noexec", &[], &["noexec"]),
        ("rnodiratime", "rw", &["nodiratime"], &[]),
        ("rdiratime", "nodiratime", &[], &["nodiratime"]),
        ("rnoatime", "rw", &["noatime"], &["relatime"]),
        ("ratime", "noatime", &["relatime"], &["noatime"]),
        ("rrelatime", "noatime", &["relatime"], &["noatime"]),
        ("rnorelatime", "relatime", &[], &["relatime", "noatime"]),
        ("rstrictatime", "relatime", &[], &["relatime", "noatime"]),
        ("rnostrictatime", "strictatime", &["relatime"], &[]),
        ("rnosymfollow", "rw", &["nosymfollow"], &[]),
        ("rsymfollow", "nosymfollow", &[], &["nosymfollow"]),
    ];
    let mut sandbox = Sandbox::new("recursive");
    let mut setup = String::from(
        "nest() {
            mount -t tmpfs t $1 && mkdir $1/sub && mount -t tmpfs t $1/sub && mkdir $1/sub/deep &&
            mount -t tmpfs t $1/sub/deep && mount -o remount,bind,$2 $1/sub/deep &&
            mount -o remount,bind,$2 $1/sub && mount -o remount,bind,$2 $1
         } && true",
    );
    for (word, before, _, _) in cases {
        let folder = sandbox.dir.join(word);
        fs::create_dir(&folder).unwrap();
        let path = folder.display();
        setup += &format!(" && nest {path} {before}");
        sandbox.mount(bind(&folder, &format!("/m/{word}"), &["rbind", word]));
    }
    sandbox.args(&["/guest", "report"]);
    let report = run_after(&sandbox, &setup).ok().json();
    for (word, _, wanted, unwanted) in cases {
        for below in ["", "/sub", "/sub/deep"] {
            let path = format!("/m/{word}{below}");
            let options = options(&report, &path);
            assert!(wanted.iter().all(|word| options.contains(word)), "{path}: {options:?}");
            assert!(!unwanted.iter().any(|word| options.contains(word)), "{path}: {options:?}");
        }
    }
}

#[test]
fn plain_attributes_stay_with_their_mount() {
    let mut sandbox = Sandbox::new("plain");
    let folder = nested(&sandbox);
    let words = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"];
    sandbox.mount(bind(&folder, "/data", &[&["rbind"][..], &words].concat()));
    // A recursive word and a plain one against it: the plain one is about the mount itself.
    sandbox.mount(bind(&folder, "/both", &["rbind", "rro", "rw", "rnoexec"]));
    sandbox.args(&["/guest", "report"]);
    let setup = format!("mount -t tmpfs t {}/sub", folder.display());
    let report = run_after(&sandbox, &setup).ok().json();
    let (top, below) = (options(&report, "/data"), options(&report, "/data/sub"));
    for word in words {
        assert!(top.contains(&word) && !below.contains(&word), "{word}: {top:?}, {below:?}");
    }
    assert_eq!(options(&report, "/both")[0], "rw");
    assert_eq!(options(&report, "/both/sub")[0], "ro");
    assert!(options(&report, "/both").contains(&"noexec"));
}

#[test]
fn recursive_attributes_hold() {
    let mut sandbox = Sandbox::new("hold");
    let folder = nested(&sandbox);
    fs::write(folder.join("sub/x"), "").unwrap();
    let words = ["rbind", "rro", "rnodev", "rnoexec", "rnosymfollow"];
    sandbox.mount(bind(&folder, "/data", &words));
    sandbox.mount(bind(&folder, "/free", &["rbind"]));
    let guest = sandbox.rootfs().join("guest");
    sandbox.args(&[
        "/guest",
        "do",
        "open c /data/sub/new",
        "exec /data/sub/guest",
        "open r /data/sub/null",
        "read /data/sub/link",
        "read /free/sub/link",
        "open r /free/sub/null",
        "open c /free/sub/new",
    ]);
    let setup = format!(
        "mount -t tmpfs t {0}/sub && cp {1} {0}/sub/guest && mknod {0}/sub/null c 1 3 && \
         echo linked >{0}/sub/file && ln -s file {0}/sub/link",
        folder.display(),
        guest.display()
    );
    let outcomes = run_after(&sandbox, &setup).ok().json();
    let wanted = ["EROFS", "EACCES", "EACCES", "ELOOP", "ok linked\n", "ok", "ok"];
    assert_eq!(outcomes, json!(wanted));
}

#[test]
fn every_option_of_the_specification_takes_effect() {
    let mut sandbox = Sandbox::new("must");
    let folder = sandbox.file("data/file", "").parent().unwrap().to_owned();
    // Option words, wanted and unwanted in mountinfo.
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&["async"], &[], &["sync"]),
        (&["sync", "async"], &[], &["sync"]),
        (&["sync"], &["sync"], &[]),
        (&["dirsync"], &["dirsync"], &[]),
        (&["noatime", "atime"], &["relatime"], &["noatime"]),
        (&["noatime"], &["noatime"], &[]),
        (&["defaults"], &["rw", "relatime"], &["nosuid", "nodev", "noexec"]),
        (&["nodev", "dev"], &[], &["nodev"]),
        (&["nodev"], &["nodev"], &[]),
        (&["nodiratime", "diratime"], &[], &["nodiratime"]),
        (&["nodiratime"], &["nodiratime"], &[]),
        (&["noexec", "exec"], &[], &["noexec"]),
        (&["noexec"], &["noexec"], &[]),
        (&["nosuid", "suid"], &[], &["nosuid"]),
        (&["nosuid"], &["nosuid"], &[]),
        (&["norelatime"], &[], &["relatime", "noatime"]),
        (&["strictatime", "relatime"], &["relatime"], &[]),
        (&["strictatime"], &[], &["relatime", "noatime"]),
        (&["strictatime", "nostrictatime"], &["relatime"], &[]),
        (&["ro"], &["ro"], &["rw"]),
        (&["ro", "rw"], &["rw"], &["ro"]),
        (&["nosymfollow"], &["nosymfollow"], &[]),
        (&["nosymfollow", "symfollow"], &[], &["nosymfollow"]),
        (&["lazytime"], &["lazytime"], &[]),
        (&["lazytime", "nolazytime"], &[], &["lazytime"]),
    ];
    let superblock = ["sync", "async", "dirsync", "lazytime", "nolazytime"];
    for (number, (words, _, _)) in cases.iter().enumerate() {
        sandbox.mount(tmpfs(&format!("/fs/{number}"), words));
        let bound = [&["bind"][..], words].concat();
        sandbox.mount(bind(&folder, &format!("/bind/{number}"), &bound));
    }
    let report = sandbox.probe();
    for (number, (words, wanted, unwanted)) in cases.iter().enumerate() {
        let path = format!("/fs/{number}");
        let mut all = options(&report, &path);
        all.extend(report.mount(&path).unwrap().texts("/super_options"));
        // A tmpfs that becomes read-only late stays writable as a filesystem.
        let unwanted: Vec<_> = unwanted.iter().filter(|word| **word != "rw").collect();
        assert!(wanted.iter().all(|word| all.contains(word)), "{words:?}: {all:?}");
        assert!(!unwanted.iter().any(|word| all.contains(word)), "{words:?}: {all:?}");
        if !superblock.contains(&words[0]) {
            let all = options(&report, &format!("/bind/{number}"));
            assert!(wanted.iter().all(|word| all.contains(word)), "{words:?}: {all:?}");
            assert!(!unwanted.iter().any(|word| all.contains(word)), "{words:?}: {all:?}");
        }
    }
}

#[test]
fn nosymfollow_holds() {
    let mut sandbox = Sandbox::new("nosymfollow");
    let folder = sandbox.file("data/file", "text").parent().unwrap().to_owned();
    std::os::unix::fs::symlink("file", folder.join("link")).unwrap();
    sandbox.mount(bind(&folder, "/data", &["bind", "nosymfollow"]));
    let outcomes = sandbox.attempt(&["read /data/file", "read /data/link", "link /data/link"]);
    assert_eq!(outcomes, ["ok text", "ELOOP", "ok file"]);
}

#[test]
fn remount_changes_the_filesystem() {
    let mut sandbox = Sandbox::new("remount");
    let remount = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options});
    sandbox.mount(tmpfs("/a", &["size=1m", "nosuid", "sync"]));
    sandbox.mount(remount("/a", &["remount", "size=2m,nr_inodes=50", "noexec", "async"]));
    sandbox.mount(tmpfs("/b", &["ro"]));
    sandbox.mount(remount("/b", &["remount", "lazytime"]));
    sandbox.mount(tmpfs("/c", &[]));
    sandbox.mount(remount("/c", &["remount", "bind", "nodev"]));
    let report = sandbox.probe();
    let all = |path: &str| {
        let mut all = options(&report, path);
        all.extend(report.mount(path).unwrap().texts("/super_options"));
        all
    };
    for (path, wanted) in [
        ("/a", &["size=2048k", "nr_inodes=50", "nosuid", "noexec"][..]),
        ("/b", &["ro", "lazytime"]),
        ("/c", &["nodev"]),
    ] {
        let all = all(path);
        assert!(wanted.iter().all(|word| all.contains(word)), "{path}: {all:?}");
    }
    assert!(!all("/a").contains(&"sync"), "{:?}", all("/a"));
}

#[test]
fn remount_makes_a_read_only_filesystem_writable() {
    let mut sandbox = Sandbox::new("remountrw");
    let folder = nested(&sandbox);
    sandbox.mount(bind(&folder, "/data", &["bind"]));
    sandbox.mount(json!({"destination": "/data", "options": ["remount", "rw"]}));
    sandbox.args(&["/guest", "do", "open c /data/new"]);
    // The mount and its filesystem are read-only.
    let setup = format!("mount -t tmpfs -o ro t {}", folder.display());
    assert_eq!(run_after(&sandbox, &setup).ok().json(), json!(["ok"]));
}

#[test]
fn remount_that_is_refused_names_the_option() {
    for (options, words) in [
        (&["remount", "size=plenty"][..], "size=plenty"),
        (&["remount", "nonsense"], "nonsense"),
        (&["remount", "bind", "size=1m"], "size"),
    ] {
        let mut sandbox = Sandbox::with_script("badremount", "exit 0");
        sandbox.mount(tmpfs("/a", &[])).mount(tmpfs("/a", options));
        sandbox.run().fails(1, &["mounts[7] (/a)", "remount", words]);
        sandbox.expect_nothing_left();
    }
    let mut sandbox = Sandbox::with_script("nomount", "exit 0");
    sandbox.mount(tmpfs("/etc", &["remount", "size=1m"]));
    sandbox.run().fails(1, &["mounts[6] (/etc)", "is it a mount point?"]);
}

/// Lets mounts be made on both sides of the border while the container runs, and returns what is
/// seen: `host` a mount of the host in the container, `container` one of the container on the
/// host, `nested` one of a container in the container, `bound` whether its root can be bound.
fn propagation(wanted: Option<&str>) -> Vec<String> {
    let mut sandbox = Sandbox::with_script(
        "crossing",
        // Each step waits for the other side's file.
        "mkdir -p /h /c /n /b; touch /inside
         n=0; until [ -e /outside ] || [ $n = 100 ]; do n=$((n+1)); sleep 0.1; done
         [ -e /h/there ] && echo host
         mount -t tmpfs t /c && touch /c/there /mounted
         n=0; until [ -e /looked ] || [ $n = 100 ]; do n=$((n+1)); sleep 0.1; done
         unshare -m --propagation shared sh -c 'mount -t tmpfs t /n && touch /n/there'
         [ -e /n/there ] && echo nested
         mount --bind / /b 2>/dev/null && echo bound
         true",
    );
    if let Some(word) = wanted {
        sandbox.config["linux"]["rootfsPropagation"] = json!(word);
    }
    let capabilities = sandbox.config["process"]["capabilities"].as_object_mut().unwrap();
    for set in capabilities.values_mut() {
        set.as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let rootfs = sandbox.rootfs();
    let script = format!(
        "exec unshare -m --propagation private sh -c '
         mount --bind {0} {0} && mount --make-shared {0} || exit 9
         \"$@\" & pid=$!
         n=0; until [ -e {0}/rootfs/inside ] || [ $n = 100 ]; do n=$((n+1)); sleep 0.1; done
         mount -t tmpfs t {0}/rootfs/h && touch {0}/rootfs/h/there {0}/rootfs/outside
         n=0; until [ -e {0}/rootfs/mounted ] || [ $n = 100 ]; do n=$((n+1)); sleep 0.1; done
         [ -e {0}/rootfs/c/there ] && echo container
         touch {0}/rootfs/looked; wait $pid' sh \"$@\"",
        rootfs.parent().unwrap().display()
    );
    let call = sandbox.bundle_call("run").arg(&sandbox.id);
    let output = call.wrapped(&script).output().ok();
    assert!(Path::new(&rootfs).join("looked").exists(), "{output:?}");
    output.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn rootfs_propagation_is_what_the_specification_says() {
    for (wanted, seen) in [
        // A peer group of its own: what is in the container shares it, the host does not.
        (Some("shared"), &["host", "nested", "bound"][..]),
        (Some("slave"), &["host", "bound"]),
        (Some("private"), &["bound"]),
        (Some("unbindable"), &[]),
        (None, &["host", "bound"]),
    ] {
        assert_eq!(propagation(wanted), seen, "{wanted:?}");
    }
}

#[test]
fn rootfs_propagation_of_another_word_is_an_error() {
    let mut sandbox = Sandbox::with_script("foo", "exit 0");
    sandbox.config["linux"]["rootfsPropagation"] = json!("foo");
    sandbox.run().fails(1, &["linux.rootfsPropagation", "foo"]);
}

#[test]
fn a_bind_mount_follows_the_host_also_in_a_private_root() {
    for option in ["rslave", "rshared"] {
        let mut sandbox = Sandbox::new("follows");
        let folder = nested(&sandbox);
        sandbox.config["linux"]["rootfsPropagation"] = json!("private");
        sandbox.mount(bind(&folder, "/data", &["rbind", option]));
        sandbox.args(&["/guest", "report"]);
        let setup = format!("mount --bind {0} {0} && mount --make-shared {0}", folder.display());
        let report = run_after(&sandbox, &setup).ok().json();
        let propagation = report.mount("/data").unwrap().texts("/propagation").join(" ");
        let kind = if option == "rslave" { "master:" } else { "shared:" };
        assert!(propagation.contains(kind), "{option}: {propagation}");
        assert_eq!(report.mount("/").unwrap().texts("/propagation").join(" "), "");
    }
}

#[test]
fn mount_label() {
    let mut sandbox = Sandbox::new("label");
    let label = "system_u:object_r:container_file_t:s0:c715,c811";
    sandbox.config["linux"]["mountLabel"] = json!(label);
    sandbox.args(&["/guest", "report"]);
    let output = sandbox.run().ok();
    if Path::new("/sys/fs/selinux/enforce").exists() {
        let report = output.json();
        let options = report.mount("/dev").unwrap().texts("/super_options").join(",");
        assert!(options.contains(label), "{options}");
    } else {
        for words in ["linux.mountLabel", "SELinux is not enabled", label] {
            assert!(output.stderr.contains(words), "{}", output.stderr);
        }
        let own = json!("");
        sandbox.config["linux"]["mountLabel"] = own;
        assert_eq!(sandbox.run().ok().stderr, "", "no label, no warning");
    }
}

/// Shown: with 48 in the place of 16 descriptors that are closed together, it was EMFILE.
#[test]
fn neither_many_mounts_nor_many_files_to_copy_need_many_descriptors() {
    let mut sandbox = Sandbox::with_script("few", "ls /copied | wc -l; ls -d /many/*/sub | wc -l");
    let folder = nested(&sandbox);
    let copied = sandbox.rootfs().join("copied");
    fs::create_dir(&copied).unwrap();
    for number in 0..300 {
        fs::write(copied.join(number.to_string()), "").unwrap();
        sandbox.mount(bind(&folder, &format!("/many/{number}"), &["bind"]));
    }
    sandbox.mount(tmpfs("/copied", &["tmpcopyup"]));
    let call = sandbox.bundle_call("run").arg(&sandbox.id);
    call.wrapped("ulimit -S -n 48; exec \"$@\"").output().ok().prints("300\n300");
}

/// Shown: with Root::cover taking the path as it is written, the devices were made in the covered /dev.
#[test]
fn a_mount_whose_path_climbs_covers_what_it_leads_to() {
    let mut sandbox =
        Sandbox::with_script("climbs", "ls -d /dev/null /dev/fd && cat /proc/keys | wc -c");
    sandbox.mount(tmpfs("/tmp/../dev", &["mode=755"]));
    let proc = json!({"destination": "/tmp/../proc", "type": "proc", "source": "proc"});
    sandbox.mount(proc);
    sandbox.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    sandbox.run().ok().prints("/dev/fd\n/dev/null\n0");
}
