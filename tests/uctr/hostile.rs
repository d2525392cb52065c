//! Layers that want what they may not have, and unpacking that is cut short.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use uctr::image::digest::sha256;
use uctr::image::layers::Layers;

use crate::fixture::{Compression, Meta, Tar, archived, header};
use crate::support::Sandbox;
use crate::unpack::{base, layout, paths};

/// Layers that want something outside, or more than they may have. Each must be refused, and leave
/// nothing.
#[test]
fn hostile_layers_are_refused_and_leave_nothing() {
    let sandbox = Sandbox::new();
    let outside = sandbox.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let up = "../".repeat(20);
    let long = "x".repeat(5000);
    let bad: Vec<(&str, Tar, &str)> = vec![
        ("climbing name", Tar::new().file(&format!("{up}etc/evil"), "x"), "could lead out"),
        (
            "climbing in the middle",
            Tar::new().folder("a").file("a/../../evil", "x"),
            "could lead out",
        ),
        ("whiteout of ..", Tar::new().folder("a").file("a/.wh...", ""), "no file can have"),
        ("whiteout of .", Tar::new().folder("a").file("a/.wh..", ""), "no file can have"),
        ("whiteout of nothing", Tar::new().file(".wh.", ""), "no file can have"),
        (
            "climbing hard link",
            Tar::new().hard_link("a", &format!("{up}etc/passwd")),
            "could lead out",
        ),
        ("hard link to what is not in it", Tar::new().hard_link("a", "etc/passwd"), "etc/passwd"),
        (
            "hard link through a link",
            Tar::new().symlink("out", outside.to_str().unwrap()).hard_link("a", "out/secret"),
            "out/secret",
        ),
        (
            "links in a circle",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"),
            "a/x",
        ),
        ("endless name", Tar::new().record("path", &long).file("x", "x"), "ENAMETOOLONG"),
        ("name with a zero", Tar::new().record("path", "a\0b").file("x", "x"), "a"),
        ("file in a file", Tar::new().file("a", "x").file("a/b", "x"), "a/b"),
        ("unknown type", Tar::new().entry(b'Z', "a", "", Meta::default(), b""), "unknown type"),
        ("root as a file", Tar::new().file("./", "x").file(".", "x"), "root must be a folder"),
        ("owner beyond 32 bits", Tar::new().record("uid", "4294967296").file("a", ""), "too big"),
        (
            "damaged record",
            Tar::new().entry(b'x', "x", "", Meta::default(), b"99 path=x\n"),
            "extended header",
        ),
        (
            "size beyond all",
            Tar::new().record("size", "18446744073709551615").file("a", ""),
            "no file has",
        ),
        (
            "huge extended header",
            Tar::new().raw(&header(b'x', "x", "", Meta::default(), 1 << 40), b""),
            "an extended header of",
        ),
        (
            "content that is missing",
            Tar::new().raw(&header(b'0', "x", "", Meta::default(), 1 << 40), b""),
            "ends in the middle",
        ),
    ];
    let clean = sandbox.dir.path().join("data/layers");
    for (number, (what, tar, words)) in bad.into_iter().enumerate() {
        let name = format!("bad-{number}");
        let image = layout(&sandbox, &name).layer(&tar.end(), Compression::Gzip).finish();
        let archive = archived(&image);
        let said = sandbox.uctr(["load", "-i", archive.to_str().unwrap()]);
        assert_eq!(said.code, 1, "{what} was taken: {}", said.stdout);
        assert!(said.stderr.contains(words), "{what}: no {words:?} in: {}", said.stderr);
        assert_eq!(fs::read_dir(&clean).unwrap().count(), 0, "{what}: layers are left");
        assert_eq!(sandbox.uctr(["images", "-q"]).ok().stdout, "", "{what}: it is an image");
        fs::remove_file(archive).unwrap();
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    assert!(!Path::new("/etc/evil").exists() && !sandbox.dir.path().join("data/evil").exists());
}

/// What engines let pass must stay inside.
#[test]
fn links_and_absolute_names_stay_inside() {
    let sandbox = Sandbox::new();
    let outside = sandbox.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let named = outside.to_str().unwrap();
    let tar = Tar::new()
        .file("/absolute", "x")
        .symlink("out", named)
        .folder(named.trim_start_matches('/'))
        .file("out/through", "x")
        .symlink("up", &"../".repeat(30))
        .file("up/climbed", "x")
        .symlink("file", &format!("{named}/by-file"))
        .file("file", "not through it")
        .symlink("trap", named)
        .file(".wh.trap", "")
        .file("out/.wh.through2", "");
    let image = layout(&sandbox, "inside").layer(&tar.end(), Compression::Gzip).finish();
    sandbox.uctr(["load", "-q", "-i", archived(&image).to_str().unwrap()]).ok();
    let bundle = sandbox.dir.path().join("bundle");
    sandbox.uctr(["unpack", "test/image:1", bundle.to_str().unwrap()]).ok();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something came out");
    let root = bundle.join("rootfs");
    assert!(root.join("absolute").is_file() && root.join("climbed").is_file());
    assert!(root.join(named.trim_start_matches('/')).join("through").is_file());
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "not through it");
}

#[test]
fn attributes_that_would_steer_overlayfs_are_dropped() {
    let sandbox = Sandbox::new();
    let tar = Tar::new()
        .record("SCHILY.xattr.trusted.overlay.redirect", "/etc")
        .record("SCHILY.xattr.trusted.overlay.opaque", "y")
        .record("SCHILY.xattr.security.selinux", "u:r:t:s0")
        .record("SCHILY.xattr.user.kept", "y")
        .folder("a");
    let tar = tar.record("SCHILY.xattr.trusted.overlay.metacopy", "").file("b", "x").end();
    let image = layout(&sandbox, "steer").layer(&tar, Compression::Gzip).finish();
    sandbox.uctr(["load", "-q", "-i", archived(&image).to_str().unwrap()]).ok();
    let fs = Layers::open(&paths(&sandbox)).unwrap().path(&sha256(&tar)).unwrap();
    let names = |path: &Path| -> Vec<String> {
        xattr::list(path).unwrap().map(|key| key.into_string().unwrap()).collect()
    };
    assert_eq!(names(&fs.join("a")), ["user.kept"]);
    assert_eq!(names(&fs.join("b")), [""; 0]);
}

#[test]
fn a_layer_must_be_that_of_its_diff_id() {
    let sandbox = Sandbox::new();
    let tar = base().end();
    let lie = format!("sha256:{}", "0".repeat(64));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let what = format!("lie-{compression:?}");
        let blob = compression.of(&tar);
        let image = layout(&sandbox, &what).layer_as(&blob, compression, &lie).finish();
        sandbox
            .uctr(["load", "-i", archived(&image).to_str().unwrap()])
            .fails(1, &["another digest", &lie[7..]]);
    }
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(), 0);
    sandbox.uctr(["images", "-q"]).ok();
}

#[test]
fn damaged_and_exploding_archives_are_refused() {
    let sandbox = Sandbox::new();
    let tar = base().end();
    let diff_id = sha256(&tar).to_string();
    let gzip = Compression::Gzip.of(&tar);
    let mut flipped = gzip.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    // 16 GiB of zeros as zstd has them in half a megabyte: not even written to find out.
    let frame = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let bomb = frame.repeat(256);
    let cases = [
        ("cut", gzip[..gzip.len() - 20].to_vec(), Compression::Gzip, "decompress"),
        ("flipped", flipped, Compression::Gzip, ""),
        ("bomb", bomb, Compression::Zstd, "only made to fill disks"),
        ("xz", b"\xfd7zXZ\0and so on".to_vec(), Compression::None, "decompress"),
        ("bzip2", b"BZh9and so on, and so on".to_vec(), Compression::None, "decompress"),
    ];
    for (what, blob, compression, words) in cases {
        let image = layout(&sandbox, what).layer_as(&blob, compression, &diff_id).finish();
        let said = sandbox.uctr(["load", "-i", archived(&image).to_str().unwrap()]);
        said.fails(1, &[words]);
        let left = fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count();
        assert_eq!(left, 0, "{what}: layers are left");
    }
}

#[test]
fn a_killed_unpacking_leaves_nothing_that_the_next_one_does_not_clean() {
    let sandbox = Sandbox::new();
    let tar = (0..3000).fold(Tar::new(), |tar, n| tar.file(&format!("file-{n}"), "content"));
    let tar = tar.end();
    let image = layout(&sandbox, "killed").layer(&tar, Compression::Gzip).finish();
    let archive = archived(&image);
    let layers = sandbox.dir.path().join("data/layers");
    let mut killed = 0;
    for delay in [1, 3, 6, 10, 15, 25] {
        let mut child = sandbox.command(["load", "-i", archive.to_str().unwrap()]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
    }
    assert!(killed > 0, "every one was too fast to be killed");
    sandbox.uctr(["load", "-i", archive.to_str().unwrap()]).ok();
    let names: Vec<_> =
        fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [sha256(&tar).digest()], "more than the layer is there");
    let fs = layers.join(&names[0]).join("fs");
    assert_eq!(std::fs::read_dir(fs).unwrap().count(), 3000);
    let left = std::fs::read_dir(sandbox.dir.path().join("data/images/ingest")).unwrap().count();
    assert_eq!(left, 0, "what a killed load wrote is still there");
    assert!(names[0].as_bytes().iter().all(u8::is_ascii_hexdigit));
}
