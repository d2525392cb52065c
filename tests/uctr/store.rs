//! The images on disk, and the commands that list, name and remove them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oci_spec::image::{Descriptor, MediaType};
use serde_json::Value;
use uctr::image::digest::sha256;
use uctr::image::layers::Layers;
use uctr::image::store::Store;
use uctr::image::usage;
use uctr::paths::Paths;

use crate::fixture::{Compression, Layout, Tar, archived};
use crate::support::{Sandbox, output};

fn paths(sandbox: &Sandbox) -> Paths {
    Paths { data: sandbox.dir.path().join("data"), run: sandbox.dir.path().join("run") }
}

fn base() -> Vec<u8> {
    Tar::new().folder("bin").file("bin/base", &"base".repeat(1000)).end()
}

/// An archive of an image of the base layer and one of its own.
fn archive(sandbox: &Sandbox, name: &str) -> PathBuf {
    let own = Tar::new().file("own", name).end();
    let folder = sandbox.dir.path().join(name.replace(['/', ':'], "-"));
    let mut layout = Layout::new(folder, name);
    layout.config = serde_json::json!({
        "Cmd": ["sh"], "Labels": {"name": name}, "Healthcheck": {"Test": ["NONE"]}
    });
    let layout = layout.layer(&base(), Compression::Gzip).layer(&own, Compression::Gzip);
    archived(&layout.finish())
}

fn load(sandbox: &Sandbox, name: &str) -> String {
    sandbox.uctr(["load", "-q", "-i", archive(sandbox, name).to_str().unwrap()]).ok();
    let id = sandbox.uctr(["images", "-q", "--no-trunc", name]).ok().stdout;
    id.trim().to_owned()
}

fn images(sandbox: &Sandbox) -> Vec<String> {
    let format = "{{.Repository}}:{{.Tag}}";
    let listed = sandbox.uctr(["images", "--format", format]).ok().stdout;
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}

fn blobs(sandbox: &Sandbox) -> usize {
    fs::read_dir(sandbox.dir.path().join("data/images/blobs/sha256")).unwrap().count()
}

#[test]
fn s5_images_have_dockers_columns() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "user/one:1");
    let listed = sandbox.uctr(["images"]).ok().stdout;
    let mut lines = listed.lines();
    assert_eq!(
        lines
            .next()
            .unwrap()
            .split("  ")
            .map(str::trim)
            .filter(|c| !c.is_empty())
            .collect::<Vec<_>>(),
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    );
    let row = lines.next().unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words[..3], ["user/one", "1", &id[7..19]]);
    assert!(row.contains(" ago "), "{row}");
    // 4000 bytes of the base, 10 of its own.
    assert_eq!(*words.last().unwrap(), "4.01kB");
    assert_eq!(lines.next(), None);
    assert_eq!(sandbox.uctr(["image", "ls"]).ok().stdout, listed);
    assert_eq!(sandbox.uctr(["image", "list", "user/one"]).ok().stdout, listed);
    assert_eq!(sandbox.uctr(["images", "user/other"]).ok().stdout.lines().count(), 1);
    let digests = sandbox.uctr(["images", "--digests"]).ok().stdout;
    assert!(digests.lines().next().unwrap().contains("DIGEST"), "{digests}");
    let json = sandbox.uctr(["images", "--format", "json"]).ok().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["Repository"], &json["ID"]), (&"user/one".into(), &id[7..19].into()));
}

#[test]
fn s5_images_are_filtered() {
    let sandbox = Sandbox::new();
    load(&sandbox, "user/one:1");
    load(&sandbox, "two:1");
    let names = |filter: &str| {
        let args = ["images", "--filter", filter, "--format", "{{.Repository}}"];
        sandbox.uctr(args).ok().stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names("label=name=two:1"), ["two"]);
    assert_eq!(names("reference=user/*"), ["user/one"]);
    assert_eq!(names("reference=*"), ["two"]);
    assert_eq!(names("dangling=true"), [""; 0]);
    assert_eq!(names("dangling=false").len(), 2);
    sandbox.uctr(["images", "--filter", "color=red"]).fails(1, &["invalid filter"]);
}

#[test]
fn s6_ids_can_be_handed_on() {
    let sandbox = Sandbox::new();
    let (one, two) = (load(&sandbox, "one:1"), load(&sandbox, "two:1"));
    let mut listed: Vec<String> =
        sandbox.uctr(["images", "-aq"]).ok().stdout.lines().map(str::to_owned).collect();
    listed.sort();
    let mut ids = [one[7..19].to_owned(), two[7..19].to_owned()];
    ids.sort();
    assert_eq!(listed, ids);
    sandbox.uctr(["rmi"].into_iter().chain(ids.iter().map(String::as_str))).ok();
    assert_eq!(images(&sandbox), [""; 0]);
}

#[test]
fn s7_only_what_nothing_else_needs_goes_with_an_image() {
    let sandbox = Sandbox::new();
    let (one, two) = (load(&sandbox, "one:1"), load(&sandbox, "two:1"));
    let layer = |name: &str| sha256(&Tar::new().file("own", name).end()).to_string();
    let gone = sandbox.uctr(["rmi", "one:1"]).ok().stdout;
    let expected = [
        "Untagged: one:1".to_owned(),
        format!("Deleted: {one}"),
        format!("Deleted: {}", layer("one:1")),
    ];
    assert_eq!(gone.lines().collect::<Vec<_>>(), expected);
    assert_eq!(blobs(&sandbox), 4, "those of the other image, and no more");
    let rest = sandbox.uctr(["rmi", &two[7..15]]).ok().stdout;
    assert_eq!(
        rest.lines().take(2).collect::<Vec<_>>(),
        ["Untagged: two:1", &format!("Deleted: {two}")]
    );
    assert!(rest.contains(&sha256(&base()).to_string()), "{rest}");
    assert_eq!(blobs(&sandbox), 0);
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(), 0);
}

#[test]
fn s7_other_names_keep_an_image() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "one:1");
    sandbox.uctr(["tag", "one:1", "one:2"]).ok();
    sandbox.uctr(["image", "tag", &id, "other"]).ok();
    assert_eq!(sandbox.uctr(["rmi", "one:1"]).ok().stdout, "Untagged: one:1\n");
    assert_eq!(images(&sandbox), ["one:2", "other:latest"]);
    sandbox.uctr(["rmi", &id]).fails(1, &["(must be forced)", "multiple repositories"]);
    let gone = sandbox.uctr(["rmi", "-f", &id]).ok().stdout;
    assert!(gone.starts_with("Untagged: one:2\nUntagged: other:latest\nDeleted: "), "{gone}");
    assert_eq!(images(&sandbox), [""; 0]);
}

#[test]
fn s8_an_image_in_use_stays() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "one:1");
    let container = sandbox.uctr(["create", "--network", "none", "one:1"]).ok().stdout;
    let short = &container[..12];
    sandbox.uctr(["rmi", "one:1"]).fails(
        1,
        &[&format!(
            "conflict: unable to remove repository reference \"one:1\" (must force) - container \
             {short} is using its referenced image {}",
            &id[7..19]
        )],
    );
    sandbox.uctr(["rmi", &id]).fails(1, &["(must be forced)", "stopped container", short]);
    sandbox.uctr(["tag", "one:1", "again:1"]).ok();
    assert_eq!(sandbox.uctr(["rmi", "one:1"]).ok().stdout, "Untagged: one:1\n");
    let gone = sandbox.uctr(["rmi", "-f", "again:1"]).ok().stdout;
    assert!(gone.contains(&format!("Deleted: {id}")), "{gone}");
    assert_eq!(
        fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(),
        2,
        "the container's layers must stay"
    );
    sandbox.uctr(["rm", container.trim()]).ok();
    load(&sandbox, "two:1");
    sandbox.uctr(["rmi", "two:1"]).ok();
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(), 0);
}

#[test]
fn s9_an_error_does_not_keep_others_from_going() {
    let sandbox = Sandbox::new();
    load(&sandbox, "one:1");
    let said = sandbox.uctr(["rmi", "none:1", "one:1", "Bad"]);
    said.fails(1, &["No such image: none:1", "must be lowercase"]);
    assert_eq!(images(&sandbox), [""; 0]);
    sandbox.uctr(["rmi", "-f", "none:1"]).ok();
    sandbox.uctr(["rmi"]).fails(1, &["IMAGE"]);
}

#[test]
fn s10_an_image_that_loses_its_name_stays() {
    let sandbox = Sandbox::new();
    let one = load(&sandbox, "one:1");
    load(&sandbox, "two:1");
    sandbox.uctr(["tag", "two:1", "one:1"]).ok();
    assert_eq!(images(&sandbox), ["<none>:<none>", "one:1", "two:1"]);
    let dangling = sandbox.uctr(["images", "-q", "--no-trunc", "-f", "dangling=true"]).ok().stdout;
    assert_eq!(dangling.trim(), one);
    let pruned = sandbox.uctr(["image", "prune", "-f"]).ok().stdout;
    assert!(pruned.starts_with(&format!("Deleted Images:\ndeleted: {one}\n")), "{pruned}");
    assert!(pruned.contains("Total reclaimed space: "), "{pruned}");
    assert_eq!(images(&sandbox), ["one:1", "two:1"]);
    let none = sandbox.uctr(["image", "prune", "-f"]).ok().stdout;
    assert_eq!(none, "Total reclaimed space: 0B\n");
}

#[test]
fn prune_asks_and_takes_filters() {
    let sandbox = Sandbox::new();
    load(&sandbox, "one:1");
    load(&sandbox, "two:1");
    let asked = sandbox.uctr(["image", "prune", "-a"]).ok().stdout;
    assert!(asked.contains("WARNING! This will remove all images without"), "{asked}");
    assert_eq!(images(&sandbox).len(), 2, "nobody said yes");
    sandbox.uctr(["image", "prune", "-af", "--filter", "label=name=one:1"]).ok();
    assert_eq!(images(&sandbox), ["two:1"]);
    sandbox.uctr(["image", "prune", "-af", "--filter", "until=2001-01-01"]).ok();
    assert_eq!(images(&sandbox), ["two:1"]);
    sandbox.uctr(["image", "prune", "-af", "--filter", "until=1h"]).ok();
    assert_eq!(images(&sandbox), [""; 0]);
}

#[test]
fn s18_history_is_newest_first() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "one:1");
    let text = sandbox.uctr(["history", "one:1"]).ok().stdout;
    let title = text.lines().next().unwrap();
    for column in ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"] {
        assert!(title.contains(column), "{title}");
    }
    let format = "{{.ID}}|{{.CreatedBy}}|{{.Size}}";
    let rows = sandbox.uctr(["image", "history", "--format", format, "one:1"]).ok().stdout;
    let newest = format!("{}|step 2|5B", &id[7..19]);
    assert_eq!(rows.lines().collect::<Vec<_>>(), [&newest, "<missing>|step 1|4kB"]);
    let exact =
        sandbox.uctr(["history", "-H=false", "--format", "{{.CreatedSince}}|{{.Size}}", "one:1"]);
    assert_eq!(exact.ok().stdout.lines().next_back(), Some("2024-01-01T00:00:00Z|4000"));
    sandbox.uctr(["history", "none"]).fails(1, &["No such image: none:latest"]);
}

#[test]
fn layers_say_who_shares_them_and_what_made_them() {
    let sandbox = Sandbox::new();
    load(&sandbox, "one:1");
    load(&sandbox, "two:1");
    let format = "{{.DiffID}}|{{.Digest}}|{{.Size}}|{{.SharedBy}}|{{.CreatedBy}}";
    let rows = sandbox.uctr(["layers", "--no-trunc", "--format", format, "one:1"]).ok().stdout;
    let own = Tar::new().file("own", "one:1").end();
    let digests = |tar: &[u8]| (sha256(tar), sha256(&Compression::Gzip.of(tar)));
    let (base, own) = (digests(&base()), digests(&own));
    assert_eq!(
        rows.lines().collect::<Vec<_>>(),
        [
            format!("{}|{}|4kB|two:1|step 1", base.0, base.1),
            format!("{}|{}|5B|-|step 2", own.0, own.1)
        ]
    );
    let title = sandbox.uctr(["image", "layers", "one:1"]).ok().stdout;
    for column in ["DIGEST", "DIFF ID", "SIZE", "COMPRESSED", "SHARED BY", "CREATED BY"] {
        assert!(title.lines().next().unwrap().contains(column), "{title}");
    }
}

#[test]
fn s62_image_inspect_is_dockers_json() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "one:1");
    let text = sandbox.uctr(["image", "inspect", "one:1", "none"]);
    assert_eq!(text.code, 1);
    assert!(text.stderr.contains("No such image: none:latest"), "{}", text.stderr);
    let all: Value = serde_json::from_str(&text.stdout).unwrap();
    let image = &all[0];
    assert_eq!(image["Id"], id);
    assert_eq!(image["RepoTags"], serde_json::json!(["one:1"]));
    assert_eq!(image["Config"]["Healthcheck"]["Test"][0], "NONE", "what OCI doesn't know is kept");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(image["Size"], 4005);
    let cmd = sandbox.uctr(["image", "inspect", "-f", "{{index .Config.Cmd 0}}", &id[7..12]]).ok();
    assert_eq!(cmd.stdout, "sh\n");
    assert_eq!(sandbox.uctr(["image", "inspect", "none"]).stdout, "[]\n");
}

#[test]
fn other_tools_read_the_store() {
    let sandbox = Sandbox::new();
    load(&sandbox, "user/one:1");
    sandbox.uctr(["tag", "user/one:1", "two"]).ok();
    let store = sandbox.dir.path().join("data/images");
    let image = format!("oci:{}:docker.io/user/one:1", store.display());
    let said = output(Command::new("skopeo").args(["inspect", &image])).ok().stdout;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["Labels"]["name"], "user/one:1");
    let listed = output(Command::new("umoci").args(["ls", "--layout"]).arg(&store)).ok().stdout;
    let mut listed: Vec<_> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["docker.io/library/two:latest", "docker.io/user/one:1"]);
    let copied = format!("oci-archive:{}", sandbox.dir.path().join("copy.tar").display());
    output(Command::new("skopeo").args(["copy", "-q", &image, &copied])).ok();
}

#[test]
fn ids_must_be_clear() {
    let sandbox = Sandbox::new();
    // With 17 images two must begin alike.
    let ids: Vec<String> = (0..17).map(|n| load(&sandbox, &format!("image:{n}"))).collect();
    let first = |id: &String| id[7..8].to_owned();
    let twice = ids.iter().find(|id| ids.iter().filter(|o| first(o) == first(id)).count() > 1);
    sandbox.uctr(["history", &first(twice.unwrap())]).fails(1, &["several images"]);
    sandbox.uctr(["history", &ids[3][7..]]).ok();
    sandbox.uctr(["history", &ids[3]]).ok();
}

#[test]
fn concurrent_loads_and_tags_lose_nothing() {
    let sandbox = Sandbox::new();
    let archives = ["one:1", "two:1", "three:1"].map(|name| archive(&sandbox, name));
    let loads: Vec<_> = (0..9)
        .map(|n| {
            let path = archives[n % 3].to_str().unwrap();
            sandbox.command(["load", "-q", "-i", path]).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in loads {
        assert!(child.wait().unwrap().success());
    }
    let names: Vec<String> = (0..24).map(|n| format!("tag-{n}")).collect();
    let tags: Vec<_> =
        names.iter().map(|name| sandbox.command(["tag", "one:1", name]).spawn().unwrap()).collect();
    for mut child in tags {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(images(&sandbox).len(), 3 + 24);
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(), 4);
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/images/ingest")).unwrap().count(), 0);
}

#[test]
fn a_killed_command_leaves_a_store_that_can_be_read() {
    let sandbox = Sandbox::new();
    let first = archive(&sandbox, "one:1");
    load(&sandbox, "kept:1");
    for delay in [2, 4, 6, 8, 12, 16, 20, 30] {
        let mut child =
            sandbox.command(["load", "-q", "-i", first.to_str().unwrap()]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
        assert!(images(&sandbox).contains(&"kept:1".to_owned()));
        let mut child =
            sandbox.command(["rmi", "-f", "one:1"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay / 2));
        let _ = child.kill();
        child.wait().unwrap();
        assert!(images(&sandbox).contains(&"kept:1".to_owned()));
    }
    sandbox.uctr(["load", "-q", "-i", first.to_str().unwrap()]).ok();
    assert_eq!(images(&sandbox), ["kept:1", "one:1"]);
    sandbox.uctr(["rmi", "one:1", "kept:1"]).ok();
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/images/ingest")).unwrap().count(), 0);
    assert_eq!(blobs(&sandbox), 0);
}

#[test]
fn a_damaged_image_does_not_hide_others() {
    let sandbox = Sandbox::new();
    let id = load(&sandbox, "one:1");
    load(&sandbox, "two:1");
    let blob = sandbox.dir.path().join("data/images/blobs/sha256").join(&id[7..]);
    fs::write(&blob, "{}").unwrap();
    let listed = sandbox.uctr(["images", "--format", "{{.Repository}}"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (0, "two\n"));
    assert!(
        listed.stderr.contains("one:1") && listed.stderr.contains("damaged"),
        "{}",
        listed.stderr
    );
    // What it needs is not known, so nothing may be thrown away.
    sandbox.uctr(["rmi", "two:1"]).fails(1, &["nothing is removed"]);
    assert_eq!(sandbox.uctr(["rmi", "one:1"]).ok().stdout, "Untagged: one:1\n");
    assert_eq!(blobs(&sandbox), 0);
    assert_eq!(load(&sandbox, "one:1"), id);
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, sha256(bytes))
}

#[test]
fn a_cut_download_is_gone_on_with() {
    let sandbox = Sandbox::new();
    let store = Store::open(&paths(&sandbox)).unwrap();
    let content = b"0123456789".repeat(1000);
    let blob = descriptor(&content);
    let mut partial = store.partial(&blob).unwrap();
    partial.write_all(&content[..4321]).unwrap();
    drop(partial);
    assert!(!store.has(&blob).unwrap());
    let mut partial = store.partial(&blob).unwrap();
    assert_eq!(partial.offset(), 4321);
    partial.write_all(&content[4321..]).unwrap();
    partial.commit().unwrap();
    assert!(store.has(&blob).unwrap());
    // Whoever waited for it finds it done.
    let again = store.partial(&blob).unwrap();
    assert_eq!(again.offset(), blob.size());
    again.commit().unwrap();
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/images/ingest")).unwrap().count(), 0);
}

#[test]
fn a_blob_must_be_what_its_descriptor_says() {
    let sandbox = Sandbox::new();
    let store = Store::open(&paths(&sandbox)).unwrap();
    let blob = descriptor(b"right");
    let mut partial = store.partial(&blob).unwrap();
    partial.write_all(b"wrong").unwrap();
    let error = format!("{:#}", partial.commit().unwrap_err());
    assert!(error.contains("another digest"), "{error}");
    let mut partial = store.partial(&blob).unwrap();
    assert_eq!(partial.offset(), 0, "what was wrong must not be gone on with");
    let error = partial.write_all(b"right and more").unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
    partial.restart().unwrap();
    partial.write_all(b"rig").unwrap();
    let error = format!("{:#}", partial.commit().unwrap_err());
    assert!(error.contains("3 bytes came"), "{error}");
    assert!(!store.has(&blob).unwrap());
}

#[test]
fn two_writers_of_a_blob_do_not_mix() {
    let sandbox = Sandbox::new();
    let store = Store::open(&paths(&sandbox)).unwrap();
    let content = vec![7; 100_000];
    let blob = descriptor(&content);
    let written = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut partial = store.partial(&blob).unwrap();
                if partial.offset() < blob.size() {
                    written.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    for part in content.chunks(1000) {
                        partial.write_all(part).unwrap();
                    }
                }
                partial.commit().unwrap();
            });
        }
    });
    assert_eq!(written.into_inner(), 1);
    assert!(store.has(&blob).unwrap());
}

#[test]
fn nothing_is_removed_while_somebody_holds_the_store() {
    let sandbox = Sandbox::new();
    load(&sandbox, "one:1");
    let store = Store::open(&paths(&sandbox)).unwrap();
    let before = blobs(&sandbox);
    let hold = store.hold().unwrap();
    sandbox.uctr(["rmi", "one:1"]).ok();
    assert_eq!(images(&sandbox), [""; 0]);
    assert_eq!(blobs(&sandbox), before);
    drop(hold);
    store.tidy();
    assert_eq!(blobs(&sandbox), 0, "the next call must do it");
    assert_eq!(fs::read_dir(sandbox.dir.path().join("data/layers")).unwrap().count(), 0);
}

#[test]
fn s75_a_layer_counts_once() {
    let sandbox = Sandbox::new();
    load(&sandbox, "one:1");
    load(&sandbox, "two:1");
    sandbox.uctr(["create", "--network", "none", "one:1"]).ok();
    let paths = paths(&sandbox);
    let (store, layers) = (Store::open(&paths).unwrap(), Layers::open(&paths).unwrap());
    let used = usage::usage(&paths, &store, &layers).unwrap();
    assert_eq!((used.total, used.active, used.size, used.reclaimable), (2, 1, 4010, 5));
}

#[test]
fn a_folder_that_is_something_else_is_not_taken_for_a_store() {
    let sandbox = Sandbox::new();
    let folder = sandbox.dir.path().join("data/images");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    sandbox.uctr(["images"]).fails(1, &["only version 1 is known"]);
    assert!(!Path::new(&folder.join("index.json")).exists());
}
