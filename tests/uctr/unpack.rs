//! From layers to files: the same as another tool makes, and nothing outside.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use uctr::image::digest::sha256;
use uctr::image::layers::Layers;
use uctr::image::store::Store;
use uctr::paths::Paths;

use crate::fixture::{Compression, Layout, Meta, Tar, archived, header};
use crate::support::{Sandbox, output};

/// All that there is to say about a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: String,
    owner: (u32, u32),
    size: u64,
    device: u64,
    mtime: (i64, i64),
    /// The first other name of it.
    same_as: Option<PathBuf>,
    target: Option<PathBuf>,
    xattrs: BTreeMap<String, Vec<u8>>,
    content: Option<String>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut names) = (BTreeMap::new(), HashMap::new());
    look(root, Path::new("."), &mut seen, &mut names);
    seen
}

fn look(
    root: &Path,
    name: &Path,
    seen: &mut BTreeMap<PathBuf, Seen>,
    names: &mut HashMap<u64, PathBuf>,
) {
    let path = root.join(name);
    let found = fs::symlink_metadata(&path).unwrap();
    let attributes = xattr::list(&path).unwrap().map(|key| {
        let value = xattr::get(&path, &key).unwrap().unwrap();
        (key.into_string().unwrap(), value)
    });
    // The mount's own, which a lower layer on its own does not have.
    let xattrs = attributes.filter(|(key, _)| !key.starts_with("trusted.overlay.")).collect();
    let is_folder = found.is_dir();
    let same_as = names.get(&found.ino()).filter(|_| found.nlink() > 1 && !is_folder).cloned();
    names.entry(found.ino()).or_insert_with(|| name.to_owned());
    seen.insert(
        name.to_owned(),
        Seen {
            mode: format!("{:o}", found.mode()),
            owner: (found.uid(), found.gid()),
            size: if is_folder { 0 } else { found.size() },
            device: found.rdev(),
            mtime: (found.mtime(), found.mtime_nsec()),
            same_as,
            target: found.is_symlink().then(|| fs::read_link(&path).unwrap()),
            xattrs,
            content: found.is_file().then(|| sha256(&fs::read(&path).unwrap()).to_string()),
        },
    );
    if is_folder {
        let mut entries: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        entries.sort();
        for entry in entries {
            look(root, &name.join(entry), seen, names);
        }
    }
}

#[track_caller]
fn assert_same(what: &str, ours: &BTreeMap<PathBuf, Seen>, theirs: &BTreeMap<PathBuf, Seen>) {
    let keys = |tree: &BTreeMap<PathBuf, Seen>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(ours), keys(theirs), "{what}: names");
    for (name, seen) in ours {
        assert_eq!(seen, &theirs[name], "{what}: {}", name.display());
    }
}

pub fn paths(sandbox: &Sandbox) -> Paths {
    Paths { data: sandbox.dir.path().join("data"), run: sandbox.dir.path().join("run") }
}

/// Where the bundle is.
#[track_caller]
fn load_and_unpack(sandbox: &Sandbox, what: &str, layout: &Path) -> PathBuf {
    sandbox.uctr(["load", "-q", "-i", archived(layout).to_str().unwrap()]).ok();
    let bundle = sandbox.dir.path().join(format!("uctr-{what}"));
    sandbox.uctr(["unpack", "test/image:1", bundle.to_str().unwrap()]).ok();
    bundle
}

/// Loads a layout's only image, named `test/image`, and compares what becomes of it with what umoci
/// makes of it: as a bundle, and mounted with overlayfs.
#[track_caller]
fn compare(sandbox: &Sandbox, what: &str, layout: Layout) {
    let layout = layout.finish();
    let theirs = sandbox.dir.path().join(format!("umoci-{what}"));
    let image = format!("{}:test/image:1", layout.display());
    output(Command::new("umoci").args(["unpack", "--image", &image]).arg(&theirs)).ok();
    let theirs = tree(&theirs.join("rootfs"));
    assert!(theirs.len() > 1, "{what}: umoci made nothing");

    let bundle = load_and_unpack(sandbox, what, &layout);
    assert_same(what, &tree(&bundle.join("rootfs")), &theirs);

    let (store, layers) =
        (Store::open(&paths(sandbox)).unwrap(), Layers::open(&paths(sandbox)).unwrap());
    let image = store.find("test/image:1").unwrap().unwrap();
    let folder = |name: &str| {
        let path = sandbox.dir.path().join(format!("{what}-{name}"));
        fs::create_dir(&path).unwrap();
        path
    };
    let (upper, work, merged) = (folder("upper"), folder("work"), folder("merged"));
    layers.mount(&image.diff_ids(), &upper, &work, &merged).unwrap();
    let mut mounted = tree(&merged);
    // The root's metadata is that of the upper folder, which is the container's.
    mounted.remove(Path::new("."));
    let mut theirs = theirs;
    theirs.remove(Path::new("."));
    assert_same(&format!("{what}, mounted"), &mounted, &theirs);
}

pub fn layout(sandbox: &Sandbox, what: &str) -> Layout {
    Layout::new(sandbox.dir.path().join(format!("layout-{what}")), "test/image:1")
}

/// Something of every kind.
pub fn base() -> Tar {
    let owned = |mode, uid, gid| Meta { mode, uid, gid, mtime: 1_500_000_000 };
    Tar::new()
        .entry(b'5', "./", "", owned(0o755, 0, 0), b"")
        .entry(b'5', "etc/", "", owned(0o750, 1, 2), b"")
        .file("etc/motd", "hello\n")
        .entry(b'0', "etc/owned", "", owned(0o640, 1000, 1001), b"x")
        .entry(b'5', "bin", "", owned(0o2755, 0, 5), b"")
        .entry(b'0', "bin/su", "", owned(0o4755, 0, 0), b"program")
        .entry(b'0', "bin/mail", "", owned(0o2755, 0, 8), b"program")
        .hard_link("bin/su2", "bin/su")
        .symlink("bin/sh", "su")
        .symlink("bin/absolute", "/etc/motd")
        .symlink("bin/dangling", "../../../../nowhere")
        .hard_link("bin/sh2", "bin/sh")
        .entry(b'5', "tmp", "", owned(0o1777, 0, 0), b"")
        .entry(b'5', "dev", "", owned(0o755, 0, 0), b"")
        .entry(b'6', "dev/fifo", "", owned(0o620, 0, 5), b"")
        .raw(&device(b'3', "dev/null", 1, 3), b"")
        .raw(&device(b'4', "dev/loop0", 7, 0), b"")
        .entry(b'5', "closed", "", owned(0o000, 0, 0), b"")
        .file("closed/inside", "x")
        .entry(b'0', "empty", "", owned(0o600, 0, 0), b"")
}

/// Whiteouts of some tools have no owner at all.
#[test]
fn empty_fields_are_zero() {
    let sandbox = Sandbox::new();
    let mut empty = header(b'0', "empty", "", Meta::default(), 0);
    empty.as_mut_bytes()[108..148].fill(0);
    empty.as_mut_bytes()[108..116].copy_from_slice(b"0000600 ");
    empty.set_cksum();
    let tar = base().raw(&empty, b"").end();
    compare(&sandbox, "fields", layout(&sandbox, "fields").layer(&tar, Compression::Gzip));
}

fn device(kind: u8, name: &str, major: u32, minor: u32) -> tar::Header {
    let mut header = header(kind, name, "", Meta { mode: 0o666, ..Meta::default() }, 0);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header.set_cksum();
    header
}

#[test]
fn files_of_every_kind_are_as_umoci_makes_them() {
    let sandbox = Sandbox::new();
    for (what, compression) in [("plain", Compression::None), ("gzip", Compression::Gzip)] {
        compare(&sandbox, what, layout(&sandbox, what).layer(&base().end(), compression));
    }
}

#[test]
fn zstd_gives_the_same_as_gzip() {
    let sandbox = Sandbox::new();
    let unpacked = [Compression::Gzip, Compression::Zstd].map(|compression| {
        let what = format!("{compression:?}");
        let image = layout(&sandbox, &what).layer(&base().end(), compression).finish();
        sandbox.uctr(["load", "-q", "-i", archived(&image).to_str().unwrap()]).ok();
        let bundle = sandbox.dir.path().join(&what);
        sandbox.uctr(["unpack", "test/image:1", bundle.to_str().unwrap()]).ok();
        tree(&bundle.join("rootfs"))
    });
    assert_same("zstd", &unpacked[1], &unpacked[0]);
}

#[test]
fn whiteouts_are_as_umoci_takes_them() {
    let sandbox = Sandbox::new();
    let first = base()
        .folder("gone")
        .file("gone/a", "a")
        .folder("gone/deep")
        .file("gone/deep/b", "b")
        .folder("opaque")
        .file("opaque/old", "old")
        .folder("opaque/below")
        .file("opaque/below/old", "old")
        .folder("folder-to-file")
        .file("folder-to-file/a", "a")
        .file("file-to-folder", "a")
        .symlink("link-to-folder", "etc")
        .folder("folder-to-link")
        .file("folder-to-link/a", "a")
        .file("changed", "old")
        .folder("again")
        .file("again/old", "old");
    let second = Tar::new()
        .folder("etc")
        .file("etc/.wh.motd", "")
        .file(".wh.gone", "")
        .folder("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "new")
        .folder("opaque/below")
        .file("opaque/below/new", "new")
        .file("folder-to-file", "now a file")
        .folder("file-to-folder")
        .file("file-to-folder/new", "new")
        .folder("link-to-folder")
        .file("link-to-folder/new", "new")
        .symlink("folder-to-link", "etc")
        .file("changed", "new and longer")
        .file(".wh.never-there", "")
        .file(".wh.again", "")
        .folder("bin")
        .file("bin/.wh.su", "");
    let third = Tar::new()
        .folder("again")
        .file("again/new", "new")
        .folder("etc")
        .file("etc/motd", "back")
        .folder("gone");
    let image = layout(&sandbox, "whiteouts")
        .layer(&first.end(), Compression::Gzip)
        .layer(&second.end(), Compression::Gzip)
        .layer(&third.end(), Compression::None);
    compare(&sandbox, "whiteouts", image);
}

/// The order that `find` or a rebuilt folder leads to: what says "gone" comes last.
#[test]
fn whiteouts_only_concern_lower_layers_wherever_they_come() {
    let sandbox = Sandbox::new();
    let first = Tar::new()
        .folder("a")
        .file("a/old", "old")
        .folder("b")
        .file("b/old", "old")
        .file("c", "old");
    let second = Tar::new()
        .folder("a")
        .file("a/new", "new")
        .file("a/.wh..wh..opq", "")
        .folder("b")
        .file("b/new", "new")
        .file(".wh.b", "")
        .file("c", "new")
        .file(".wh.c", "");
    let image = layout(&sandbox, "order")
        .layer(&first.end(), Compression::Gzip)
        .layer(&second.end(), Compression::Gzip)
        .finish();
    sandbox.uctr(["load", "-q", "-i", archived(&image).to_str().unwrap()]).ok();
    let bundle = sandbox.dir.path().join("bundle");
    sandbox.uctr(["unpack", "test/image:1", bundle.to_str().unwrap()]).ok();
    let (store, layers) =
        (Store::open(&paths(&sandbox)).unwrap(), Layers::open(&paths(&sandbox)).unwrap());
    let image = store.find("test/image:1").unwrap().unwrap();
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| {
        fs::create_dir(sandbox.dir.path().join(name)).unwrap();
        sandbox.dir.path().join(name)
    });
    layers.mount(&image.diff_ids(), &upper, &work, &merged).unwrap();
    for root in [bundle.join("rootfs"), merged] {
        let names: Vec<_> = tree(&root).into_keys().collect();
        let expected = [".", "./a", "./a/new", "./b", "./b/new", "./c"].map(PathBuf::from);
        assert_eq!(names, expected, "{}", root.display());
        assert_eq!(fs::read_to_string(root.join("c")).unwrap(), "new");
    }
}

#[test]
fn extended_headers_are_as_umoci_reads_them() {
    let sandbox = Sandbox::new();
    let long = format!("long/{}/{}", "d".repeat(150), "n".repeat(200));
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = base()
        .folder("long")
        .record("path", format!("long/{}", "d".repeat(150)))
        .folder("x")
        .record("path", &long)
        .record("mtime", "1234567890.123456789")
        .file("x", "long")
        .record("linkpath", &long)
        .symlink("to-long", "x")
        .record("linkpath", &long)
        .hard_link("is-long", "x")
        .record("SCHILY.xattr.user.comment", "with\nnewline=and\0zero")
        .record("SCHILY.xattr.trusted.private", "x")
        .file("with-attributes", "x")
        .record("SCHILY.xattr.security.capability", capability)
        .entry(b'0', "ping", "", Meta { mode: 0o755, ..Meta::default() }, b"program")
        .record("SCHILY.xattr.user.folder", "yes")
        .folder("with-attributes-too")
        .record("uid", "3000000000")
        .record("gid", "70000")
        .file("far-owner", "x")
        .folder("ünï")
        .record("path", "ünï/code")
        .file("x", "x")
        .record("mtime", "-1.5")
        .file("before-1970", "x");
    let image = layout(&sandbox, "extended").layer(&tar.end(), Compression::Gzip);
    compare(&sandbox, "extended", image);
}

/// What GNU tar writes in each of its formats, long names, holes and all.
#[test]
fn archives_of_gnu_tar_are_as_umoci_reads_them() {
    let sandbox = Sandbox::new();
    let source = sandbox.dir.path().join("source");
    let deep = source.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(120)), "deep").unwrap();
    std::os::unix::fs::symlink("g".repeat(180), source.join("link")).unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    // More parts than an old header has room for.
    for part in 0..40u64 {
        std::os::unix::fs::FileExt::write_at(&sparse, b"part", part * 150_000).unwrap();
    }
    sparse.set_len(8_000_000).unwrap();
    let formats: [(&str, &[&str]); 5] = [
        ("gnu", &["--format=gnu"]),
        ("oldgnu", &["--format=oldgnu"]),
        ("posix", &["--format=posix"]),
        ("posix01", &["--format=posix", "--sparse-version=0.1"]),
        ("posix10", &["--format=posix", "--sparse-version=1.0"]),
    ];
    for (what, options) in formats {
        let archive = sandbox.dir.path().join(what);
        output(
            Command::new("tar")
                .args(["--create", "--sparse", "--hole-detection=seek", "--file"])
                .arg(&archive)
                .args(options)
                .arg("--directory")
                .arg(&source)
                .arg("."),
        )
        .ok();
        let tar = fs::read(&archive).unwrap();
        assert!(tar.len() < 1_000_000, "{what}: not written as sparse");
        let image = layout(&sandbox, what).layer(&tar, Compression::Gzip);
        // It doesn't know the sparse files of GNU's own formats.
        if what.starts_with("posix") {
            compare(&sandbox, what, image);
        } else {
            load_and_unpack(&sandbox, what, &image.finish());
        }
        let root = sandbox.dir.path().join(format!("uctr-{what}/rootfs"));
        let mut unpacked = tree(&root);
        for seen in unpacked.values_mut().filter(|_| what.ends_with("gnu")) {
            seen.mtime.1 = 0;
        }
        let mut expected = tree(&source);
        for seen in expected.values_mut().filter(|_| what.ends_with("gnu")) {
            // There is no room for parts of seconds.
            seen.mtime.1 = 0;
        }
        assert_same(what, &unpacked, &expected);
        let ours = sandbox.dir.path().join(format!("uctr-{what}/rootfs/sparse"));
        let blocks = fs::metadata(&ours).unwrap().blocks();
        assert!(blocks < 2000, "{what}: the holes were filled: {blocks} blocks");
    }
}

#[test]
fn images_that_umoci_built_are_as_it_unpacks_them() {
    let sandbox = Sandbox::new();
    let layout = sandbox.dir.path().join("built");
    let umoci = |args: &[&str]| output(Command::new("umoci").args(args)).ok();
    let image = format!("{}:test/image:1", layout.display());
    let bundle = sandbox.dir.path().join("bundle");
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    let change = |change: &dyn Fn(&Path)| {
        umoci(&["unpack", "--image", &image, bundle.to_str().unwrap()]);
        change(&bundle.join("rootfs"));
        umoci(&["repack", "--image", &image, bundle.to_str().unwrap()]);
        fs::remove_dir_all(&bundle).unwrap();
    };
    change(&|root| {
        for folder in ["bin", "etc/deep/er", "lib"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        fs::hard_link(root.join("bin/busybox"), root.join("bin/sh")).unwrap();
        std::os::unix::fs::symlink("lib", root.join("lib64")).unwrap();
        fs::write(root.join("etc/deep/er/file"), "x").unwrap();
        xattr::set(root.join("etc/deep"), "user.a", b"\0binary\n").unwrap();
    });
    change(&|root| {
        fs::remove_file(root.join("bin/sh")).unwrap();
        fs::remove_dir_all(root.join("etc/deep")).unwrap();
        fs::write(root.join("etc/deep"), "now a file").unwrap();
        fs::remove_file(root.join("lib64")).unwrap();
        fs::create_dir(root.join("lib64")).unwrap();
    });
    umoci(&["unpack", "--image", &image, bundle.to_str().unwrap()]);
    sandbox.uctr(["load", "-q", "-i", archived(&layout).to_str().unwrap()]).ok();
    let ours = sandbox.dir.path().join("ours");
    sandbox.uctr(["unpack", "test/image:1", ours.to_str().unwrap()]).ok();
    assert_same("umoci's own", &tree(&ours.join("rootfs")), &tree(&bundle.join("rootfs")));
}

#[test]
fn a_bundle_is_made_whole_or_not_at_all() {
    let sandbox = Sandbox::new();
    let image = layout(&sandbox, "image").layer(&base().end(), Compression::Gzip).finish();
    sandbox.uctr(["load", "-q", "-i", archived(&image).to_str().unwrap()]).ok();
    let taken = sandbox.dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("mine"), "x").unwrap();
    sandbox
        .uctr(["unpack", "test/image:1", taken.to_str().unwrap()])
        .fails(1, &["is there already"]);
    assert_eq!(fs::read_to_string(taken.join("mine")).unwrap(), "x");
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);
    let before = fs::read_dir(sandbox.dir.path()).unwrap().count();
    let (_, blob) = fs::read_dir(sandbox.dir.path().join("data/images/blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.metadata().unwrap().len(), entry.path()))
        .find(|(_, path)| fs::read(path).unwrap().starts_with(&[0x1f, 0x8b]))
        .unwrap();
    fs::File::options().write(true).open(blob).unwrap().set_len(100).unwrap();
    let target = sandbox.dir.path().join("target");
    sandbox.uctr(["unpack", "test/image:1", target.to_str().unwrap()]).fails(1, &["unpack layer"]);
    assert_eq!(fs::read_dir(sandbox.dir.path()).unwrap().count(), before, "something was left");
}
