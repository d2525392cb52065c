//! Images as files: `save`, `load`, `import`; and new layers from what was changed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::Value;
use uctr::image::commit::Change;
use uctr::image::diff::write_layer;
use uctr::image::digest::sha256;
use uctr::image::layers::Layers;
use uctr::image::store::Store;
use uctr::paths::Paths;

use crate::fixture::{Compression, Layout, Tar, archived};
use crate::support::{Sandbox, output};

fn layers() -> [Vec<u8>; 3] {
    let first = Tar::new().folder("bin").file("bin/program", "program").end();
    [first, Tar::new().file("a", "a").end(), Tar::new().file("b", "b").end()]
}

/// An image with a layer of each compression.
fn archive(sandbox: &Sandbox, name: &str) -> PathBuf {
    archive_with(sandbox, name, Compression::Zstd)
}

fn archive_with(sandbox: &Sandbox, name: &str, of_second: Compression) -> PathBuf {
    let [first, second, third] = layers();
    let mut layout = Layout::new(sandbox.dir.path().join(name.replace([':', '/'], "-")), name);
    layout.config = serde_json::json!({"Cmd": ["/bin/program"], "Env": [format!("NAME={name}")]});
    let layout = layout
        .layer(&first, Compression::Gzip)
        .layer(&second, of_second)
        .layer(&third, Compression::None);
    archived(&layout.finish())
}

fn load(sandbox: &Sandbox, name: &str) -> String {
    let said = sandbox.uctr(["load", "-i", archive(sandbox, name).to_str().unwrap()]).ok().stdout;
    assert_eq!(said, format!("Loaded image: {name}\n"));
    sandbox.uctr(["images", "-q", "--no-trunc", name]).ok().stdout.trim().to_owned()
}

fn skopeo(args: &[&str]) -> String {
    output(Command::new("skopeo").args(args)).ok().stdout
}

#[test]
fn s12_what_is_saved_is_a_docker_archive_and_an_oci_archive() {
    let sandbox = Sandbox::new();
    load(&sandbox, "user/one:1");
    load(&sandbox, "two:2");
    let file = sandbox.dir.path().join("saved.tar");
    let file = file.to_str().unwrap();
    sandbox.uctr(["save", "-o", file, "user/one:1", "two:2"]).ok();
    let names = output(Command::new("tar").args(["tf", file])).ok().stdout;
    for name in ["manifest.json", "index.json", "oci-layout"] {
        assert!(names.lines().any(|line| line == name), "{names}");
    }
    // Two configurations, two manifests, three layers that both share.
    assert_eq!(
        names.lines().filter(|line| line.len() > "blobs/sha256/".len()).count(),
        7,
        "{names}"
    );
    for (image, name) in
        [("docker.io/user/one:1", "user/one:1"), ("docker.io/library/two:2", "two:2")]
    {
        for image in
            [format!("docker-archive:{file}:{image}"), format!("oci-archive:{file}:{name}")]
        {
            let config: Value =
                serde_json::from_str(&skopeo(&["inspect", "--config", &image])).unwrap();
            assert_eq!(config["config"]["Env"][0], format!("NAME={name}"), "{image}");
            let folder = sandbox.dir.path().join("copy");
            skopeo(&["copy", "-q", &image, &format!("dir:{}", folder.display())]);
            fs::remove_dir_all(folder).unwrap();
        }
    }
    let mode = fs::metadata(file).unwrap().mode();
    assert_eq!(mode & 0o077, 0, "others may not read it");
}

#[test]
fn s12_names_that_are_saved() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "one:1");
    sandbox.uctr(["tag", "one:1", "one:2"]).ok();
    let tags = |args: &[&str]| -> Value {
        let file = sandbox.dir.path().join("saved.tar");
        let mut all = vec!["save", "-o", file.to_str().unwrap()];
        all.extend(args);
        sandbox.uctr(all).ok();
        let text = output(Command::new("tar").arg("xOf").arg(&file).arg("manifest.json")).ok();
        let images: Value = serde_json::from_str(&text.stdout).unwrap();
        assert_eq!(images.as_array().unwrap().len(), 1);
        images[0]["RepoTags"].clone()
    };
    assert_eq!(tags(&["one:2"]), serde_json::json!(["one:2"]));
    assert_eq!(tags(&["one:2", "one:1"]), serde_json::json!(["one:2", "one:1"]));
    assert_eq!(tags(&["one"]), serde_json::json!(["one:1", "one:2"]));
    assert_eq!(tags(&[&id]), serde_json::json!([]));
    let file = sandbox.dir.path().join("never.tar");
    sandbox.uctr(["save", "-o", file.to_str().unwrap(), "none"]).fails(1, &["No such image: none"]);
    assert!(!file.exists());
}

#[test]
fn s13_images_come_back_as_they_were() {
    let sandbox = Sandbox::new();
    let (one, two) = (load(&sandbox, "user/one:1"), load(&sandbox, "two:2"));
    let manifest = |sandbox: &Sandbox| {
        let format = "{{.Descriptor.digest}}";
        sandbox.uctr(["image", "inspect", "-f", format, "two:2"]).ok().stdout
    };
    let before = manifest(&sandbox);
    let file = sandbox.dir.path().join("saved.tar");
    let saved =
        sandbox.command(["save", "user/one", "two:2"]).stdout(Stdio::piped()).output().unwrap();
    fs::write(&file, &saved.stdout).unwrap();
    sandbox.uctr(["rmi", "user/one:1", "two:2"]).ok();
    let said = sandbox.uctr(["load", "--input", file.to_str().unwrap()]).ok().stdout;
    assert_eq!(said, "Loaded image: user/one:1\nLoaded image: two:2\n");
    let ids = sandbox.uctr(["images", "-q", "--no-trunc"]).ok().stdout;
    assert!(ids.contains(&one) && ids.contains(&two), "{ids}");
    assert_eq!(manifest(&sandbox), before, "digests stay");
}

#[test]
fn s13_archives_of_other_tools_are_loaded() {
    let sandbox = Sandbox::new();
    // What skopeo writes for docker can't have zstd in it.
    let source = archive_with(&sandbox, "one:1", Compression::Gzip);
    let source = format!("oci-archive:{}", source.display());
    let file = |name: &str| sandbox.dir.path().join(name).to_str().unwrap().to_owned();
    let (docker, oci) = (file("docker.tar"), file("oci.tar"));
    skopeo(&[
        "copy",
        "-q",
        &source,
        &format!("docker-archive:{docker}:docker.io/library/docker:1"),
    ]);
    skopeo(&["copy", "-q", &source, &format!("oci-archive:{oci}:localhost:5000/oci:1")]);
    let said = sandbox.uctr(["load", "-i", &docker]).ok().stdout;
    assert_eq!(said, "Loaded image: docker:1\n");
    let said = sandbox.uctr(["load", "-i", &oci]).ok().stdout;
    assert_eq!(said, "Loaded image: localhost:5000/oci:1\n");
    for name in ["docker:1", "localhost:5000/oci:1"] {
        let bundle = file(&name.replace([':', '/'], "-"));
        sandbox.uctr(["unpack", name, &bundle]).ok();
        for (path, content) in [("a", "a"), ("b", "b"), ("bin/program", "program")] {
            let path = Path::new(&bundle).join("rootfs").join(path);
            assert_eq!(fs::read_to_string(path).unwrap(), content);
        }
    }
    // What has no name, and a bare tag is none.
    let (unnamed, tagged) = (file("unnamed.tar"), file("tagged.tar"));
    skopeo(&["copy", "-q", &source, &format!("oci-archive:{unnamed}")]);
    skopeo(&["copy", "-q", &source, &format!("oci-archive:{tagged}:v1")]);
    for archive in [unnamed, tagged] {
        let said = sandbox.uctr(["load", "-i", &archive]).ok().stdout;
        assert!(said.starts_with("Loaded image ID: sha256:"), "{said}");
    }
}

#[test]
fn s13_compressed_archives_come_through_stdin() {
    let sandbox = Sandbox::new();
    let plain = fs::read(archive(&sandbox, "one:1")).unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut child =
            sandbox.command(["load"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&compression.of(&plain)).unwrap();
        let said = child.wait_with_output().unwrap();
        assert!(said.status.success());
        assert_eq!(String::from_utf8_lossy(&said.stdout), "Loaded image: one:1\n");
        sandbox.uctr(["rmi", "one:1"]).ok();
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let sandbox = Sandbox::new();
    let good = fs::read(archive(&sandbox, "one:1")).unwrap();
    let file = sandbox.dir.path().join("bad.tar");
    let refused = |bytes: &[u8], words: &[&str]| {
        fs::write(&file, bytes).unwrap();
        sandbox.uctr(["load", "-i", file.to_str().unwrap()]).fails(1, words);
        assert_eq!(sandbox.uctr(["images", "-aq"]).ok().stdout, "");
        let left = fs::read_dir(sandbox.dir.path().join("data/images/ingest")).unwrap().count();
        assert_eq!(left, 0, "something is left of {words:?}");
    };
    refused(&Tar::new().file("etc/passwd", "x").end(), &["neither", "import"]);
    refused(b"no archive at all, but long enough".repeat(100).as_slice(), &["tar archive"]);
    refused(&good[..good.len() / 2], &["archive"]);
    let [first, ..] = layers();
    let changed = {
        // Another content under the name of the layer's digest.
        let digest = sha256(&Compression::Gzip.of(&first));
        let name = format!("one-1/blobs/sha256/{}", digest.digest());
        fs::write(sandbox.dir.path().join(name), "other").unwrap();
        fs::read(archived(&sandbox.dir.path().join("one-1"))).unwrap()
    };
    refused(&changed, &["its content in the archive is another"]);
    let images = r#"[{"Config":"../../etc/passwd","RepoTags":["x:1"],"Layers":[]}]"#;
    refused(&Tar::new().file("manifest.json", images).end(), &["the archive lacks"]);
    let round = Tar::new().symlink("manifest.json", "a").symlink("a", "manifest.json").end();
    refused(&round, &["neither"]);
}

#[test]
fn a_root_filesystem_is_imported() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().folder("bin").file("bin/program", "program").end();
    let file = sandbox.dir.path().join("rootfs.tar.gz");
    fs::write(&file, Compression::Gzip.of(&tar)).unwrap();
    let file = file.to_str().unwrap();
    let changes = ["-c", "CMD [\"/bin/program\", \"x\"]", "-c", "ENV A=1 B='2 3'"];
    let mut args = vec!["import", "-m", "from afar", file, "new:1"];
    args.extend(changes);
    let id = sandbox.uctr(args).ok().stdout;
    assert!(id.starts_with("sha256:"), "{id}");
    let format = "{{.Id}} {{json .Config.Cmd}} {{json .Config.Env}} {{.Comment}} {{.Os}}";
    let said = sandbox.uctr(["image", "inspect", "-f", format, "new:1"]).ok().stdout;
    let expected = r#" ["/bin/program","x"] ["A=1","B=2 3"] from afar linux"#;
    assert_eq!(said.trim(), format!("{}{expected}", id.trim()));
    let said = sandbox.uctr(["image", "inspect", "-f", "{{index .RootFS.Layers 0}}", "new:1"]).ok();
    assert_eq!(said.stdout.trim(), sha256(&tar).to_string());
    sandbox.uctr(["import", "-c", "RUN x", file]).fails(1, &["not a valid change"]);
    sandbox.uctr(["import", "http://localhost/x.tar"]).fails(1, &["fetch it first"]);
    sandbox.uctr(["import", "/dev/null/none", "x"]).fails(1, &["/dev/null/none"]);
}

/// What other tools compress can be read: in one piece, and in several that follow each other.
#[test]
fn archives_are_decompressed_whatever_with() {
    let sandbox = Sandbox::new();
    let tar = Tar::new().folder("bin").file("bin/program", "program").end();
    let image = fs::read(archive(&sandbox, "image")).unwrap();
    for tool in ["gzip", "bzip2", "xz", "zstd"] {
        let pack = |bytes: &[u8]| {
            let file = sandbox.dir.path().join("plain");
            fs::write(&file, bytes).unwrap();
            let packed = Command::new(tool).arg("-c").arg(&file).output();
            let packed = packed.unwrap_or_else(|error| panic!("tests need {tool}: {error}"));
            assert!(packed.status.success());
            packed.stdout
        };
        let (first, second) = tar.split_at(tar.len() / 2);
        for packed in [pack(&tar), [pack(first), pack(second)].concat()] {
            let file = sandbox.dir.path().join("packed");
            fs::write(&file, &packed).unwrap();
            sandbox.uctr(["import", file.to_str().unwrap(), "new:1"]).ok();
            let format = "{{index .RootFS.Layers 0}}";
            let said = sandbox.uctr(["image", "inspect", "-f", format, "new:1"]).ok();
            assert_eq!(said.stdout.trim(), sha256(&tar).to_string(), "{tool}");
            let cut = &packed[..packed.len() - 5];
            fs::write(&file, cut).unwrap();
            sandbox.uctr(["import", file.to_str().unwrap(), "cut:1"]).fails(1, &[]);
        }
        let file = sandbox.dir.path().join("image.packed");
        fs::write(&file, pack(&image)).unwrap();
        let said = sandbox.uctr(["load", "-i", file.to_str().unwrap()]).ok().stdout;
        let id = said.trim().strip_prefix("Loaded image ID: ");
        sandbox.uctr(["rmi", id.unwrap_or_else(|| panic!("{tool}: {said}"))]).ok();
    }
}

/// A file whose path is longer than the headers of an archive have room for.
fn deep_file(root: &Path) -> PathBuf {
    root.join("l".repeat(120)).join("m".repeat(120)).join("file")
}

/// Changes of all kinds to the files of `base:1`, with a socket as long as it is kept.
fn change_files(merged: &Path) -> UnixListener {
    fs::remove_dir_all(merged.join("gone")).unwrap();
    fs::remove_dir_all(merged.join("renewed")).unwrap();
    fs::create_dir(merged.join("renewed")).unwrap();
    fs::write(merged.join("renewed/new"), "new").unwrap();
    fs::write(merged.join("changed"), "new").unwrap();
    fs::remove_file(merged.join("removed")).unwrap();
    fs::write(merged.join("etc/linked"), "linked").unwrap();
    fs::hard_link(merged.join("etc/linked"), merged.join("etc/linked2")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), merged.join("etc/link")).unwrap();
    let deep = deep_file(merged);
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    fs::write(&deep, "deep").unwrap();
    std::os::unix::fs::chown(&deep, Some(1234), Some(5678)).unwrap();
    xattr::set(&deep, "user.key", b"value\nof two lines").unwrap();
    mknod(&merged.join("fifo"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap();
    UnixListener::bind(merged.join("socket")).unwrap()
}

/// What [`change_files`] has made is in another root; `before` is of its deep file.
fn expect_changed_files(root: &Path, before: &fs::Metadata) {
    let file = deep_file(root);
    assert!(!root.join("gone").exists() && !root.join("removed").exists());
    assert!(!root.join("renewed/old").exists());
    for (path, content) in [("renewed/new", "new"), ("changed", "new"), ("etc/kept", "kept")] {
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), content);
    }
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.uid(), found.gid()), (1234, 5678));
    assert_eq!((found.mtime(), found.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!(xattr::get(&file, "user.key").unwrap().unwrap(), b"value\nof two lines");
    assert!(fs::metadata(root.join("fifo")).unwrap().file_type().is_fifo());
    let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(inode("etc/linked"), inode("etc/linked2"));
    assert_eq!(fs::read_link(root.join("etc/link")).unwrap().as_os_str().len(), 150);
}

/// What overlayfs writes into the upper folder becomes a layer that means the same.
#[test]
fn s72_changes_become_a_layer() {
    let sandbox = Sandbox::new();
    let lower = Tar::new()
        .folder("gone")
        .file("gone/a", "a")
        .folder("renewed")
        .file("renewed/old", "old")
        .file("changed", "old")
        .file("removed", "x")
        .folder("etc")
        .file("etc/kept", "kept")
        .end();
    let layout = Layout::new(sandbox.dir.path().join("layout"), "base:1");
    let archive = archived(&layout.layer(&lower, Compression::Gzip).finish());
    sandbox.uctr(["load", "-q", "-i", archive.to_str().unwrap()]).ok();
    let paths =
        Paths { data: sandbox.dir.path().join("data"), run: sandbox.dir.path().join("run") };
    let (store, layers) = (Store::open(&paths).unwrap(), Layers::open(&paths).unwrap());
    let base = store.find("base:1").unwrap().unwrap();
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| {
        fs::create_dir(sandbox.dir.path().join(name)).unwrap();
        sandbox.dir.path().join(name)
    });
    layers.mount(&base.diff_ids(), &upper, &work, &merged).unwrap();
    let socket = change_files(&merged);

    let mut tar = Vec::new();
    write_layer(&upper, &mut tar).unwrap();
    let config = serde_json::json!({"Cmd": ["/new"]});
    let change = Change {
        config: config.as_object().unwrap().clone(),
        created_by: "sh -c something".to_owned(),
        comment: "a comment".to_owned(),
        author: "somebody".to_owned(),
    };
    let image = store.add_layer(&layers, Some(&base), &mut tar.as_slice(), &change).unwrap();
    store.tag(&"new:1".parse().unwrap(), &image.manifest).unwrap();
    drop(socket);

    let names = output(Command::new("tar").args(["tf", "-"]).stdin({
        let file = sandbox.dir.path().join("layer.tar");
        fs::write(&file, &tar).unwrap();
        fs::File::open(file).unwrap()
    }));
    let names = names.ok().stdout;
    for name in [".wh.gone", ".wh.removed", "renewed/.wh..wh..opq"] {
        assert!(names.lines().any(|line| line == name), "no {name} in {names}");
    }
    assert!(!names.contains("socket") && !names.contains("kept"), "{names}");

    let bundle = sandbox.dir.path().join("bundle");
    sandbox.uctr(["unpack", "new:1", bundle.to_str().unwrap()]).ok();
    let root = bundle.join("rootfs");
    expect_changed_files(&root, &fs::metadata(deep_file(&merged)).unwrap());

    let format = "{{json .Config.Cmd}} {{.Comment}} {{.Author}} {{len .RootFS.Layers}}";
    let said = sandbox.uctr(["image", "inspect", "-f", format, "new:1"]).ok().stdout;
    assert_eq!(said, "[\"/new\"] a comment somebody 2\n");
    let format = "{{.CreatedBy}}";
    let history = sandbox.uctr(["history", "--format", format, "new:1"]).ok().stdout;
    assert_eq!(history, "sh -c something\nstep 1\n");
    let saved = sandbox.dir.path().join("new.tar");
    sandbox.uctr(["save", "-o", saved.to_str().unwrap(), "new:1"]).ok();
    let image = format!("docker-archive:{}:docker.io/library/new:1", saved.display());
    let folder = format!("dir:{}", sandbox.dir.path().join("copied").display());
    skopeo(&["copy", "-q", &image, &folder]);
}

#[test]
fn a_bundle_says_what_the_image_runs() {
    let sandbox = Sandbox::new();
    let passwd = "root:x:0:0::/:\nweb:x:33:44::/:\n";
    let group = "root:x:0:\nextra:x:55:web\n";
    let tar = Tar::new().folder("etc").file("etc/passwd", passwd).file("etc/group", group).end();
    let mut layout = Layout::new(sandbox.dir.path().join("layout"), "web:1");
    layout.config = serde_json::json!({
        "Entrypoint": ["/bin/server"], "Cmd": ["-f"], "Env": ["A=1"], "User": "web",
        "WorkingDir": "/srv", "StopSignal": "SIGQUIT", "Labels": {"x": "y"}
    });
    let archive = archived(&layout.layer(&tar, Compression::Gzip).finish());
    sandbox.uctr(["load", "-q", "-i", archive.to_str().unwrap()]).ok();
    let bundle = sandbox.dir.path().join("bundle");
    sandbox.uctr(["unpack", "web:1", bundle.to_str().unwrap()]).ok();
    let text = fs::read(bundle.join("config.json")).unwrap();
    let spec: Value = serde_json::from_slice(&text).unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], serde_json::json!(["/bin/server", "-f"]));
    assert_eq!(process["cwd"], "/srv");
    assert_eq!(process["env"][1], "A=1");
    assert_eq!(process["user"]["uid"], 33);
    assert_eq!(process["user"]["gid"], 44);
    assert_eq!(process["user"]["additionalGids"], serde_json::json!([55]));
    assert_eq!(spec["annotations"]["x"], "y");
}

/// Docker's daemon, without a network and with everything of it in the sandbox.
struct Docker {
    daemon: std::process::Child,
    socket: String,
}

impl Docker {
    fn start(sandbox: &Sandbox) -> Self {
        let none = None::<&str>;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("run"), "/run", Some("tmpfs"), flags, none).unwrap();
        let path = |name: &str| sandbox.dir.path().join(name).to_str().unwrap().to_owned();
        let (data, log) = (path("docker-data"), path("docker.log"));
        let log = fs::File::create(log).unwrap();
        let daemon = Command::new("dockerd")
            .args([
                "--data-root",
                &data,
                "--exec-root",
                "/run/docker",
                "--pidfile",
                "/run/docker.pid",
            ])
            .args(["--host", "unix:///run/docker.sock", "--storage-driver", "vfs", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { daemon, socket: "unix:///run/docker.sock".to_owned() };
        let is_up = || docker.command(&["version"]).output().unwrap().status.success();
        let up = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            is_up()
        });
        assert!(up, "{}", fs::read_to_string(path("docker.log")).unwrap());
        docker
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        // The daemon may be older than the client.
        command.args(["--host", &self.socket]).args(args).env("DOCKER_API_VERSION", "1.41");
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        output(&mut self.command(args)).ok().stdout
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.daemon.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}

#[test]
fn s13_docker_loads_what_is_saved_and_the_other_way_round() {
    let is_there = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
    };
    if !is_there("dockerd") || !is_there("docker") {
        println!("skipped s13_docker_loads_what_is_saved_and_the_other_way_round: no dockerd here");
        return;
    }
    let sandbox = Sandbox::new();
    // Its daemon knows zstd only from version 23 on.
    let archive = archive_with(&sandbox, "user/one:1", Compression::Gzip);
    sandbox.uctr(["load", "-q", "-i", archive.to_str().unwrap()]).ok();
    let id = sandbox.uctr(["images", "-q", "--no-trunc"]).ok().stdout;
    let saved = sandbox.dir.path().join("saved.tar");
    let saved = saved.to_str().unwrap();
    sandbox.uctr(["save", "-o", saved, "user/one:1"]).ok();
    let docker = Docker::start(&sandbox);
    assert_eq!(docker.ok(&["load", "-q", "-i", saved]), "Loaded image: user/one:1\n");
    assert_eq!(docker.ok(&["images", "-q", "--no-trunc"]), id);
    docker.ok(&["tag", "user/one:1", "from-docker:1"]);
    docker.ok(&["save", "-o", saved, "from-docker:1"]);
    sandbox.uctr(["rmi", "user/one:1"]).ok();
    let said = sandbox.uctr(["load", "-i", saved]).ok().stdout;
    assert_eq!(said, "Loaded image: from-docker:1\n");
    assert_eq!(sandbox.uctr(["images", "-q", "--no-trunc"]).ok().stdout, id);
}
