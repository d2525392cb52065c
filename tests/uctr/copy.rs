//! Copying into and out of containers, and images of what changed in them (S71, S72).

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Stdio;

use crate::support::Host;

#[test]
fn s71_cp_into_and_out_of_containers() {
    let host = Host::new();
    let script = "mkdir -p /srv/d; echo inside >/srv/d/f; ln -s d /srv/link; chmod 640 /srv/d/f; \
                  chown 1000:1000 /srv/d/f";
    host.start("web", &["-v", "data:/data"], script);
    // The same holds when it runs, when it is paused, and when it has ended.
    for (round, before) in [("running", "unpause"), ("paused", "pause"), ("ended", "kill")] {
        if round != "running" {
            host.says(&[before, "web"]);
        }
        fs::create_dir(host.path(round)).unwrap();
        let local = |name: &str| host.at(&format!("{round}/{name}"));
        fs::write(local("f"), round).unwrap();
        fs::create_dir_all(local("tree/sub")).unwrap();
        fs::write(local("tree/sub/x"), "x").unwrap();
        symlink("/etc/shadow", local("tree/abs")).unwrap();
        let read = |path: &str| {
            let out = local(&format!("out-{}", path.replace('/', "_")));
            host.says(&["cp", "-q", &format!("web:{path}"), &out]);
            fs::read_to_string(out).unwrap()
        };
        // A file: under another name, into a folder, over a file.
        host.says(&["cp", &local("f"), &format!("web:/srv/{round}")]);
        assert_eq!(read(&format!("/srv/{round}")), round);
        host.says(&["cp", &local("f"), "web:/tmp"]);
        assert_eq!(read("/tmp/f"), round);
        host.says(&["cp", &local("f"), "web:/srv/link/"]);
        assert_eq!(read("/srv/d/f"), round);
        // The volume is mounted also when it doesn't run.
        host.says(&["cp", &local("f"), "web:data/"]);
        assert_eq!(fs::read_to_string(host.path("data/volumes/data/_data/f")).unwrap(), round);
        // A folder: as a new one, into one that is there, only what is in it.
        host.says(&["cp", &local("tree"), &format!("web:/srv/new-{round}")]);
        assert_eq!(read(&format!("/srv/new-{round}/sub/x")), "x");
        host.says(&["cp", &local("tree"), &format!("web:/srv/new-{round}")]);
        assert_eq!(read(&format!("/srv/new-{round}/tree/sub/x")), "x");
        host.says(&["cp", &format!("{}/.", local("tree")), "web:/tmp"]);
        assert_eq!(read("/tmp/sub/x"), "x");
        // Out again; links stay links.
        host.says(&["cp", &format!("web:/srv/new-{round}"), &local("back")]);
        assert_eq!(fs::read_link(local("back/abs")).unwrap().to_str(), Some("/etc/shadow"));
        assert_eq!(fs::read_to_string(local("back/sub/x")).unwrap(), "x");
        let said = host.uctr(&["cp", "web:/srv/link", &local("link")]).ok();
        assert!(said.stderr.contains("Successfully copied"), "{}", said.stderr);
        assert_eq!(fs::read_link(local("link")).unwrap().to_str(), Some("d"));
        host.says(&["cp", "-L", "web:/srv/link", &local("followed")]);
        assert!(fs::symlink_metadata(local("followed")).unwrap().is_dir());
    }
}

#[test]
fn s71_cp_keeps_to_docker_s_rules() {
    let host = Host::new();
    host.start("web", &[], "mkdir -p /srv/d; echo f >/srv/d/f; echo g >/srv/g; chmod 640 /srv/d/f; chown 1000:1000 /srv/d/f");
    fs::write(host.path("f"), "f").unwrap();
    fs::create_dir_all(host.path("tree/g")).unwrap();
    let (file, tree, out) = (host.at("f"), host.at("tree"), host.at("out"));
    for (args, words) in [
        ([file.as_str(), "web:/nowhere/f"], "no such directory: /nowhere"),
        ([&file, "web:/srv/new/"], "no such directory: /srv/new/"),
        ([&file, "web:/srv/g/"], "not a directory"),
        ([&tree, "web:/srv/g"], "cannot copy directory"),
        ([&format!("{tree}/."), "web:/srv"], "cannot overwrite non-directory with directory"),
        (["/nowhere", "web:/srv"], "no such file or directory"),
        (["web:/nowhere", &out], "Could not find the file /nowhere in container web"),
        (["web:/srv/g/", &out], "not a directory"),
        (["web:/srv/g", "web:/srv/h"], "copying between containers is not supported"),
        ([&file, &out], "must specify at least one container source"),
        (["nope:/x", &out], "No such container: nope"),
        (["web:/srv/d", &file], "cannot copy directory"),
    ] {
        host.uctr(&["cp", args[0], args[1]]).fails(1, &[words]);
    }
    assert!(!fs::exists(&out).unwrap());
    // A file here belongs to who asked for it, unless its owner is wanted too.
    host.says(&["cp", "web:/srv/d/f", &out]);
    let found = fs::metadata(&out).unwrap();
    assert_eq!((found.uid(), found.permissions().mode() & 0o7777), (0, 0o640));
    host.says(&["cp", "-a", "web:/srv/d/f", &out]);
    assert_eq!(fs::metadata(&out).unwrap().uid(), 1000);
    host.uctr(&[
        "run",
        "-d",
        "--network",
        "none",
        "--read-only",
        "--name",
        "ro",
        "busybox",
        "sleep",
        "1000",
    ])
    .ok();
    host.uctr(&["cp", &file, "ro:/tmp"]).fails(1, &["read-only"]);
}

#[test]
fn s71_cp_reads_and_writes_archives() {
    let host = Host::new();
    host.start("web", &[], "mkdir -p /srv/d; echo f >/srv/d/f");
    let archive = host.0.command(["cp", "web:/srv/d", "-"]).output().unwrap();
    assert!(archive.status.success());
    let mut read = tar::Archive::new(archive.stdout.as_slice());
    let names: Vec<PathBuf> =
        read.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [PathBuf::from("d/"), "d/f".into()]);
    let mut cp = host.0.command(["cp", "-", "web:/tmp"]);
    let mut child = cp.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&archive.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(host.says(&["exec", "web", "cat", "/tmp/d/f"]), "f\n");
    host.uctr(&["cp", "-", "web:/srv/d/f"]).fails(1, &["must be a directory"]);
    // Names that mean something in layers are files like others.
    fs::write(host.path(".wh.f"), "x").unwrap();
    host.says(&["cp", &host.at(".wh.f"), "web:/srv/d/"]);
    assert_eq!(host.says(&["exec", "web", "ls", "-A", "/srv/d"]), ".wh.f\nf\n");
}

#[test]
fn s71_cp_is_not_led_astray_by_links_in_the_container() {
    let host = Host::new();
    let outside = host.at("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(host.path("outside/secret"), "secret").unwrap();
    fs::write(host.path("f"), "f").unwrap();
    let up = format!("../../../../../../../..{outside}");
    let script = format!(
        "ln -s {outside} /abs; ln -s {up} /up; ln -s {outside}/secret /file; mkdir /loop; ln -s /loop/b /loop/a; ln -s /loop/a /loop/b; ln -s /proc/1/root /proc1"
    );
    host.start("web", &[], &script);
    for round in 0..2 {
        for link in ["/abs", "/up"] {
            host.uctr(&["cp", &format!("web:{link}/secret"), &host.at("out")])
                .fails(1, &["Could not find the file"]);
            host.uctr(&["cp", &host.at("f"), &format!("web:{link}/new")]).fails(1, &[]);
        }
        host.uctr(&["cp", "-L", "web:/file", &host.at("out")]).fails(1, &["Could not find"]);
        host.uctr(&["cp", &host.at("f"), "web:/loop/a"]).fails(1, &[]);
        host.uctr(&["cp", &host.at("f"), "web:/file"]).fails(1, &["no such directory"]);
        assert!(!fs::exists(host.path("out")).unwrap());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(host.path("outside/secret")).unwrap(), "secret");
        if round == 0 {
            host.says(&["kill", "web"]);
        }
    }
}

#[test]
fn s71_cp_is_not_led_astray_by_links_that_appear_meanwhile() {
    let host = Host::new();
    fs::create_dir(host.path("outside")).unwrap();
    fs::write(host.path("outside/f"), "outside").unwrap();
    fs::write(host.path("new"), "new").unwrap();
    let script = format!(
        "mkdir /d; echo inside >/d/f; ln -s {} /l; \
         (while :; do mv /d /x; mv /l /d; mv /d /l; mv /x /d; done) 2>/dev/null &",
        host.at("outside")
    );
    host.start("web", &[], &script);
    for round in 0..30 {
        let (file, folder) = (host.at(&format!("f{round}")), host.at(&format!("d{round}")));
        for (from, to, found) in [("web:/d/f", &file, "f"), ("web:/d", &folder, "d")] {
            if host.uctr(&["cp", from, to]).code == 0 {
                let place = host.path(&format!("{found}{round}"));
                let is_link = fs::symlink_metadata(&place).unwrap().is_symlink();
                let content = if found == "f" { place } else { place.join("f") };
                if !is_link && let Ok(text) = fs::read_to_string(content) {
                    assert_eq!(text, "inside\n");
                }
            }
        }
        host.uctr(&["cp", &host.at("new"), "web:/d/"]);
        host.uctr(&["cp", "-L", "web:/l/f", &host.at("never")]);
    }
    let left: Vec<_> = fs::read_dir(host.path("outside")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(fs::read_to_string(host.path("outside/f")).unwrap(), "outside");
    // That name leads to the folder in the container half of the time.
    let never = fs::read_to_string(host.path("never")).unwrap_or_default();
    assert_ne!(never, "outside");
}

#[test]
fn s72_commit_makes_images_that_run() {
    let host = Host::new();
    let id = host.start("web", &["-e", "A=b"], "echo new >/srv-new; rm /bin/wget; mkdir -p /d/e");
    let image = host.says(&[
        "commit",
        "-m",
        "a message",
        "-a",
        "me",
        "-c",
        "CMD [\"cat\", \"/srv-new\"]",
        "-c",
        "ENV C=d",
        "web",
        "mine:1",
    ]);
    assert!(image.starts_with("sha256:") && image.trim().len() == 71, "{image}");
    assert_eq!(host.inspect(&id)["State"]["Status"], "running");
    assert_eq!(host.says(&["run", "--rm", "--network", "none", "mine:1"]), "new\n");
    let env = host.says(&[
        "run",
        "--rm",
        "--network",
        "none",
        "mine:1",
        "sh",
        "-c",
        "echo $A$C; ls /bin/wget; ls -d /d/e",
    ]);
    assert_eq!(env, "bd\n/d/e\n");
    let found = host.inspect("mine:1");
    assert_eq!(found["Comment"], "a message");
    assert_eq!(found["Author"], "me");
    assert_eq!(found["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    host.says(&["commit", "-p=false", "web"]);
    assert!(host.says(&["images"]).contains("<none>"));
    host.uctr(&["commit", "-c", "RUN x", "web"]).fails(1, &["RUN is not a valid change command"]);
    host.uctr(&["commit", "web", "Upper:1"]).fails(1, &["invalid reference format"]);
    host.uctr(&["commit", "nope"]).fails(1, &["No such container: nope"]);
}
