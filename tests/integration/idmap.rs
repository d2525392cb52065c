//! Id-mapped mounts: the owners that files show, and those that new files get.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Sandbox, bind, set_namespace};

fn map(container: u32, host: u32, size: u32) -> Value {
    json!([{"containerID": container, "hostID": host, "size": size}])
}

/// A bind mount with id maps of its own.
fn mapped(source: &Path, destination: &str, options: &[&str], map: Value) -> Value {
    let mut mount = bind(source, destination, options);
    mount["uidMappings"] = map.clone();
    mount["gidMappings"] = map;
    mount
}

fn with_user_namespace(sandbox: &mut Sandbox) {
    set_namespace(&mut sandbox.config, "user", None);
    sandbox.config["linux"]["uidMappings"] = map(0, 100000, 65536);
    sandbox.config["linux"]["gidMappings"] = map(0, 100000, 65536);
    for path in ["", "dev", "etc", "mnt", "proc", "sys", "tmp"] {
        chown(sandbox.rootfs().join(path), Some(100000), Some(100000)).unwrap();
    }
}

/// A folder with a file of user 7, both open to that user only.
fn data(sandbox: &Sandbox) -> PathBuf {
    let folder = sandbox.file("data/seven", "text").parent().unwrap().to_owned();
    chown(folder.join("seven"), Some(7), Some(8)).unwrap();
    folder
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

#[test]
fn own_maps_without_a_user_namespace() {
    let mut sandbox = Sandbox::new("idmap");
    let folder = data(&sandbox);
    chown(&folder, Some(5), Some(5)).unwrap();
    // 5..15 on disk are 1005..1015 here; nobody else's id has a meaning on this mount.
    sandbox.mount(mapped(&folder, "/data", &["bind", "idmap"], map(5, 1005, 10)));
    // Without the option, the maps alone say it.
    sandbox.mount(mapped(&folder, "/again", &["rbind"], map(5, 2005, 10)));
    sandbox.config["process"]["user"] = json!({"uid": 1005, "gid": 1005});
    let outcomes = sandbox.attempt(&[
        "stat /data/seven",
        "stat /again/seven",
        "open c /data/new",
        "stat /data/new",
        "open c /again/new2",
    ]);
    assert!(outcomes[0].ends_with("uid=1007 gid=1008"), "{outcomes:?}");
    assert!(outcomes[1].ends_with("uid=2007 gid=2008"), "{outcomes:?}");
    assert_eq!(outcomes[2], "ok");
    assert!(outcomes[3].ends_with("uid=1005 gid=1005"), "{outcomes:?}");
    assert_eq!(outcomes[4], "EOVERFLOW", "no id on disk stands for user 1005 there");
    assert_eq!(owner(folder.join("new")), (5, 5));
    assert_eq!(owner(folder.join("seven")), (7, 8), "nothing on disk was changed");
}

#[test]
fn the_maps_of_the_containers_user_namespace() {
    let mut sandbox = Sandbox::new("idmapns");
    with_user_namespace(&mut sandbox);
    let folder = data(&sandbox);
    let file = folder.join("seven");
    sandbox.mount(bind(&folder, "/plain", &["bind"]));
    sandbox.mount(bind(&folder, "/data", &["bind", "idmap"]));
    sandbox.mount(bind(&folder, "/readonly", &["bind", "ro", "idmap"]));
    sandbox.mount(bind(&file, "/file", &["bind", "idmap"]));
    let outcomes = sandbox.attempt(&[
        "stat /plain/seven",
        "stat /data/seven",
        "open c /data/new",
        "stat /data/new",
        "chown /data/new 9",
        "open c /readonly/x",
        "stat /file",
    ]);
    assert!(outcomes[0].ends_with("uid=65534 gid=65534"), "{outcomes:?}");
    assert!(outcomes[1].ends_with("uid=7 gid=8"), "{outcomes:?}");
    assert_eq!(outcomes[2], "ok", "root in the container is root on this mount");
    assert!(outcomes[3].ends_with("uid=0 gid=0"), "{outcomes:?}");
    assert_eq!(outcomes[4], "ok");
    assert_eq!(outcomes[5], "EROFS");
    assert!(outcomes[6].ends_with("uid=7 gid=8"), "{outcomes:?}");
    assert_eq!(owner(folder.join("new")), (9, 9));
}

#[test]
fn own_maps_beside_a_user_namespace() {
    let mut sandbox = Sandbox::new("idmapboth");
    with_user_namespace(&mut sandbox);
    let folder = data(&sandbox);
    // User 7 on disk is the container's user 1000.
    sandbox.mount(mapped(&folder, "/data", &["bind", "idmap"], map(7, 101000, 2)));
    let outcomes = sandbox.attempt(&["stat /data/seven"]);
    assert!(outcomes[0].ends_with("uid=1000 gid=1001"), "{outcomes:?}");
}

#[test]
fn the_maps_of_a_joined_user_namespace() {
    let mut first = Sandbox::with_script("idfirst", "exec sleep 100");
    with_user_namespace(&mut first);
    first.run_detached();
    let mut sandbox = Sandbox::new("idjoin");
    with_user_namespace(&mut sandbox);
    for list in ["uidMappings", "gidMappings"] {
        sandbox.config["linux"].as_object_mut().unwrap().remove(list);
    }
    let pid = first.pid();
    for (kind, name) in [("user", "user"), ("network", "net")] {
        set_namespace(&mut sandbox.config, kind, Some(&format!("/proc/{pid}/ns/{name}")));
    }
    let folder = data(&sandbox);
    sandbox.mount(bind(&folder, "/data", &["bind", "idmap"]));
    let outcomes = sandbox.attempt(&["stat /data/seven"]);
    assert!(outcomes[0].ends_with("uid=7 gid=8"), "{outcomes:?}");
}

#[test]
fn ridmap_reaches_what_is_mounted_below() {
    for (option, below) in [("idmap", "uid=3 gid=3"), ("ridmap", "uid=1003 gid=1003")] {
        let mut sandbox = Sandbox::new("ridmap");
        let folder = data(&sandbox);
        fs::create_dir(folder.join("sub")).unwrap();
        sandbox.mount(mapped(&folder, "/data", &["rbind", option], map(0, 1000, 100)));
        sandbox.args(&["/guest", "do", "stat /data/seven", "stat /data/sub/three"]);
        let script = format!(
            "exec unshare -m --propagation private sh -c \
             'mount -t tmpfs t {0}/sub && touch {0}/sub/three && chown 3:3 {0}/sub/three && \
             exec \"$@\"' sh \"$@\"",
            folder.display()
        );
        let call = sandbox.bundle_call("run").arg(&sandbox.id);
        let outcomes = call.wrapped(&script).output().ok().json();
        assert!(outcomes[0].as_str().unwrap().ends_with("uid=1007 gid=1008"), "{outcomes}");
        assert!(outcomes[1].as_str().unwrap().ends_with(below), "{option}: {outcomes}");
    }
}

#[test]
fn maps_that_are_missing_or_make_no_sense_are_errors() {
    let cases: [(&[&str], Value, &str); 5] = [
        (&["bind", "idmap"], json!({}), "need uidMappings and gidMappings"),
        (&["bind", "ridmap"], json!({"uidMappings": [], "gidMappings": []}), "user namespace"),
        (&["bind"], json!({"uidMappings": map(0, 1, 1)}), "both"),
        (&["bind", "idmap"], json!({"gidMappings": map(0, 1, 1)}), "both"),
        (
            &["bind", "idmap"],
            json!({"uidMappings": map(0, 1, 0), "gidMappings": map(0, 1, 1)}),
            "uidMappings: a mapping has size 0",
        ),
    ];
    for (options, maps, words) in cases {
        let mut sandbox = Sandbox::with_script("badmap", "exit 0");
        let mut mount = bind("/etc", "/data", options);
        mount.as_object_mut().unwrap().extend(maps.as_object().unwrap().clone());
        sandbox.mount(mount);
        sandbox.run().fails(1, &["mounts[6] (/data)", words]);
    }
    let mut sandbox = Sandbox::with_script("overlap", "exit 0");
    let twice = json!([map(0, 1, 10)[0], map(5, 100, 10)[0]]);
    sandbox.mount(mapped(Path::new("/etc"), "/data", &["bind", "idmap"], twice));
    sandbox.run().fails(1, &["mounts[6] (/data).uidMappings"]);
    sandbox.expect_nothing_left();
}

#[test]
fn a_filesystem_that_cannot_be_mapped_is_named() {
    let mut sandbox = Sandbox::with_script("nomap", "exit 0");
    sandbox.mount(mapped(Path::new("/proc/sys"), "/data", &["bind", "idmap"], map(0, 1000, 9)));
    sandbox.run().fails(1, &["mounts[6] (/data)", "filesystem proc at /proc/sys"]);
    let mut sandbox = Sandbox::with_script("nomapbelow", "exit 0");
    let folder = data(&sandbox);
    let below = folder.join("with space");
    fs::create_dir(&below).unwrap();
    sandbox.mount(mapped(&folder, "/data", &["rbind", "ridmap"], map(0, 1000, 9)));
    let script = format!(
        "exec unshare -m --propagation private sh -c \
         'mount -t sysfs t \"{0}\" && exec \"$@\"' sh \"$@\"",
        below.display()
    );
    let call = sandbox.bundle_call("run").arg(&sandbox.id);
    let named = format!("filesystem sysfs at {}", below.display());
    call.wrapped(&script).output().fails(1, &["mounts[6] (/data)", &named]);
    sandbox.expect_nothing_left();
}
