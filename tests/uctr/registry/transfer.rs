//! Images to and from Debian's docker-registry.

use std::fs;
use std::process::Stdio;

use serde_json::json;

use super::rogue::{Fake, INDEX, MANIFEST, Reply, Rogue, sha256};
use super::server::{Registry, blobs, digest, fill, layout, names, tool, unpacked};
use crate::support::Sandbox;

const IMAGE: &str = "localhost:5000/user/web:1";

#[test]
fn s1_s19_pull_tells_layers_digest_and_status() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    let image = layout(&sandbox, "image", &[("/a", b"first"), ("/b", b"second")]);
    fill(&image, IMAGE, &[]);
    let out = sandbox.uctr(["pull", IMAGE]).ok().stdout;
    let digest = format!("Digest: {}\n", digest(IMAGE));
    for line in ["1: Pulling from user/web\n", ": Pulling fs layer\n", &digest] {
        assert!(out.contains(line), "no {line:?}: {out}");
    }
    assert_eq!(out.matches(": Pull complete\n").count(), 2, "{out}");
    let status = format!("Status: Downloaded newer image for {IMAGE}\n{IMAGE}\n");
    assert!(out.ends_with(&status), "{out}");
    assert_eq!(unpacked(&sandbox, "a"), [b"first"]);
    assert_eq!(unpacked(&sandbox, "b"), [b"second"]);
    assert_eq!(names(&sandbox), [IMAGE]);
    let again = sandbox.uctr(["image", "pull", IMAGE]).ok().stdout;
    assert!(again.contains(&format!("Status: Image is up to date for {IMAGE}\n")), "{again}");
    assert!(!again.contains("Pulling fs layer"), "{again}");
}

#[test]
fn s1_create_and_run_pull_what_is_not_here() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    fill(&layout(&sandbox, "image", &[("/a", b"a")]), "localhost:5000/web", &[]);
    let name = "localhost:5000/web";
    let words = "No such image: localhost:5000/web:latest";
    let out = sandbox.uctr(["create", "--pull", "never", name, "/a"]);
    assert!(matches!(out.code, 1 | 125), "{}", out.code);
    assert!(out.stderr.contains(words), "{}", out.stderr);
    let out = sandbox.uctr(["create", name, "/a"]).ok();
    // What is told of it does not get between the ID and who reads it.
    assert_eq!(out.stdout.trim().len(), 64, "{}", out.stdout);
    for line in [
        "Unable to find image 'localhost:5000/web:latest' locally\n",
        "latest: Pulling from web\n",
        ": Pull complete\n",
        "Status: Downloaded newer image for localhost:5000/web:latest\n",
    ] {
        assert!(out.stderr.contains(line), "no {line:?}: {}", out.stderr);
    }
    assert_eq!(sandbox.uctr(["create", name, "/a"]).ok().stderr, "");
    let out = sandbox.uctr(["create", "--pull", "always", name, "/a"]).ok();
    assert!(!out.stderr.contains("Unable to find"), "{}", out.stderr);
    let status = "Status: Image is up to date for localhost:5000/web:latest\n";
    assert!(out.stderr.ends_with(status), "{}", out.stderr);
}

#[test]
fn a_terminal_shows_bars() {
    let sandbox = Sandbox::new();
    let image = Fake::new(&b"bars".repeat(1 << 16));
    let rogue = Rogue::new(move |request| image.reply(request));
    let name = format!("{}/bars", rogue.address);
    let pull = sandbox.command(["pull", &name]);
    let words = std::iter::once(pull.get_program()).chain(pull.get_args());
    let line: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let out = tool("script", &["-qefc", &line.join(" "), "/dev/null"]).stdout;
    assert!(out.contains("\u{1b}["), "{out:?}");
    assert!(out.contains(": Pull complete"), "{out:?}");
    assert!(out.contains(&format!("Status: Downloaded newer image for {name}:latest")), "{out:?}");
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
}

#[test]
fn s20_a_layer_that_another_image_brought_already_exists() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    let image = layout(&sandbox, "image", &[("/a", b"first")]);
    fill(&image, "localhost:5000/one:1", &[]);
    fs::write(sandbox.dir.path().join("more"), b"more").unwrap();
    let tag = format!("{}:1", image.display());
    let more = sandbox.dir.path().join("more");
    tool("umoci", &["insert", "--image", &tag, more.to_str().unwrap(), "/b"]);
    fill(&image, "localhost:5000/two:1", &[]);
    sandbox.uctr(["pull", "localhost:5000/one:1"]).ok();
    let out = sandbox.uctr(["pull", "localhost:5000/two:1"]).ok().stdout;
    assert_eq!(out.matches(": Already exists\n").count(), 1, "{out}");
    assert_eq!(out.matches(": Pull complete\n").count(), 1, "{out}");
}

#[test]
fn s4_a_missing_tag_or_repository_is_manifest_unknown() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    fill(&layout(&sandbox, "image", &[("/a", b"a")]), IMAGE, &[]);
    let missing = "localhost:5000/user/web:2";
    let words = [&format!("manifest for {missing} not found"), "manifest unknown"];
    sandbox.uctr(["pull", missing]).fails(1, &words.map(AsRef::as_ref));
    sandbox.uctr(["pull", "localhost:5000/nobody"]).fails(1, &["unknown"]);
    assert!(names(&sandbox).is_empty());
}

#[test]
fn s2_names_that_are_none_never_reach_a_registry() {
    let sandbox = Sandbox::new();
    let lowercase = ["repository name must be lowercase"];
    sandbox.uctr(["pull", "localhost:5000/Web"]).fails(1, &lowercase);
    sandbox.uctr(["pull", "ubuntu:latest:14.04"]).fails(1, &["invalid reference format"]);
    sandbox.uctr(["push", "a/../../etc"]).fails(1, &["invalid reference format"]);
    let flags = ["pull", "--platform", "linux/amd 64", "localhost:5000/a"];
    sandbox.uctr(flags).fails(1, &["--platform"]);
}

#[test]
fn nobody_listens() {
    let sandbox = Sandbox::new();
    sandbox.uctr(["pull", "localhost:5000/web"]).fails(1, &["/v2/", "Connection refused"]);
}

#[test]
fn all_formats_of_manifests_and_layers_are_pulled() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    let kinds: [(&str, &[&str], &str, &str); 3] = [
        ("oci", &["--format", "oci"], "oci.image.config", "tar+gzip"),
        ("docker", &["--format", "v2s2"], "docker.distribution.manifest", "tar.gzip"),
        ("zstd", &["--dest-compress-format", "zstd"], "oci.image.config", "tar+zstd"),
    ];
    for (tag, flags, manifest, layer) in kinds {
        // skopeo takes what it knows of the same layer in another compression.
        let content = tag.as_bytes().repeat(1000);
        let image = layout(&sandbox, tag, &[("/a", &content)]);
        let name = format!("localhost:5000/{tag}:1");
        fill(&image, &name, flags);
        let raw = tool(
            "skopeo",
            &["inspect", "--tls-verify=false", "--raw", &format!("docker://{name}")],
        );
        for word in [manifest, layer] {
            assert!(raw.stdout.contains(word), "skopeo didn't make a {word}: {}", raw.stdout);
        }
        // Nothing of the one before may help.
        let _ = fs::remove_dir_all(sandbox.dir.path().join("data"));
        sandbox.uctr(["pull", &name]).ok();
        assert_eq!(unpacked(&sandbox, "a"), [content.as_slice()], "{tag}");
    }
}

#[test]
fn a_tag_and_a_digest_name_the_same_image() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    fill(&layout(&sandbox, "image", &[("/a", b"a")]), IMAGE, &[]);
    let digest = digest(IMAGE);
    let by_digest = format!("localhost:5000/user/web@{digest}");
    let out = sandbox.uctr(["pull", &by_digest]).ok().stdout;
    assert!(out.contains(&format!("Digest: {digest}\n")), "{out}");
    assert_eq!(names(&sandbox), [by_digest]);
    let wrong = format!("localhost:5000/user/web@sha256:{:064}", 1);
    sandbox.uctr(["pull", &wrong]).fails(1, &["manifest unknown"]);
    let out = sandbox.uctr(["pull", "-q", IMAGE]).ok().stdout;
    assert_eq!(out, format!("{IMAGE}\n"));
}

#[test]
fn pull_all_tags() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    let image = layout(&sandbox, "image", &[("/a", b"a")]);
    for tag in ["1", "2", "x.y"] {
        fill(&image, &format!("localhost:5000/many:{tag}"), &[]);
    }
    let out = sandbox.uctr(["pull", "-a", "localhost:5000/many"]).ok().stdout;
    assert!(out.contains("x.y: Pulling from many\n"), "{out}");
    assert_eq!(names(&sandbox).len(), 3);
    let words = ["tag can't be used with --all-tags/-a"];
    sandbox.uctr(["pull", "-a", "localhost:5000/many:1"]).fails(1, &words);
}

#[test]
fn an_index_gives_the_image_of_the_platform() {
    let sandbox = Sandbox::new();
    let images: Vec<(String, Fake)> = ["amd64", "arm64", "s390x"]
        .into_iter()
        .map(|name| (name.to_owned(), Fake::of_platform(name.as_bytes(), "linux", name)))
        .collect();
    let manifests: Vec<_> = images
        .iter()
        .map(|(architecture, image)| {
            json!({"mediaType": MANIFEST, "digest": sha256(&image.manifest),
                "size": image.manifest.len(),
                "platform": {"os": "linux", "architecture": architecture}})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let index = serde_json::to_vec(&index).unwrap();
    let root = sha256(&index);
    let served = images.clone();
    let rogue = Rogue::new(move |request| {
        if request.path.ends_with("/manifests/latest") {
            return Reply::new(200, index.clone()).header("Content-Type", INDEX);
        }
        let is_of = |image: &&(String, Fake)| {
            let Fake { manifest, config, layer } = &image.1;
            [manifest, config, layer].iter().any(|blob| request.path.ends_with(&sha256(blob)))
        };
        match served.iter().find(is_of) {
            Some((_, image)) => image.reply(request),
            None => Reply::new(if request.path == "/v2/" { 200 } else { 404 }, ""),
        }
    });
    let name = format!("{}/multi", rogue.address);
    let out = sandbox.uctr(["pull", "--platform", "linux/arm64", &name]).ok().stdout;
    assert!(out.contains(&format!("Digest: {root}\n")), "{out}");
    assert_eq!(unpacked(&sandbox, "f"), [b"arm64"]);
    // What a registry has for a name is the index, and so is what users pin.
    assert_eq!(repo_digests(&sandbox, &name), [format!("{name}@{root}")]);
    sandbox.uctr(["pull", "--platform", "linux/s390x", &name]).ok();
    assert_eq!(unpacked(&sandbox, "f").len(), 2);
    let words = ["no matching manifest for linux/mips64le in the manifest list entries"];
    sandbox.uctr(["pull", "--platform", "linux/mips64le", &name]).fails(1, &words);
}

#[test]
fn an_image_for_another_platform_is_refused_if_one_is_asked_for() {
    let sandbox = Sandbox::new();
    let image = Fake::of_platform(b"x", "linux", "s390x");
    let rogue = Rogue::new(move |request| image.reply(request));
    let name = format!("{}/single", rogue.address);
    let words = ["its platform (linux/s390x) does not match the specified platform (linux/arm64)"];
    sandbox.uctr(["pull", "--platform", "linux/arm64", &name]).fails(1, &words);
    assert!(names(&sandbox).is_empty());
    sandbox.uctr(["pull", "--platform", "linux/s390x", &name]).ok();
}

fn repo_digests(sandbox: &Sandbox, name: &str) -> Vec<String> {
    let out = sandbox.uctr(["image", "inspect", name]).ok().stdout;
    let all: serde_json::Value = serde_json::from_str(&out).unwrap();
    serde_json::from_value(all[0]["RepoDigests"].clone()).unwrap()
}

#[test]
fn s15_push_sends_what_skopeo_and_we_read_back() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    let image = layout(&sandbox, "image", &[("/a", &b"first".repeat(5000)), ("/b", b"second")]);
    fill(&image, IMAGE, &[]);
    sandbox.uctr(["pull", IMAGE]).ok();
    let first = digest(IMAGE);
    // The same image at another registry, which has nothing of it.
    let _other = Registry::start(&sandbox, "localhost:5001", "");
    let target = "localhost:5001/copy/web:1";
    sandbox.uctr(["tag", IMAGE, target]).ok();
    let out = sandbox.uctr(["push", target]).ok().stdout;
    assert!(out.starts_with("The push refers to repository [localhost:5001/copy/web]\n"), "{out}");
    assert_eq!(out.matches(": Pushed\n").count(), 2, "{out}");
    let size =
        tool("skopeo", &["inspect", "--tls-verify=false", "--raw", &format!("docker://{target}")])
            .stdout
            .len();
    assert!(out.ends_with(&format!("1: digest: {first} size: {size}\n")), "{out}");
    assert_eq!(digest(target), first);
    let out = sandbox.uctr(["push", target]).ok().stdout;
    assert_eq!(out.matches(": Layer already exists\n").count(), 2, "{out}");
    let elsewhere = "localhost:5001/mounted:1";
    sandbox.uctr(["tag", IMAGE, elsewhere]).ok();
    let out = sandbox.uctr(["push", elsewhere]).ok().stdout;
    assert_eq!(out.matches(": Mounted from copy/web\n").count(), 2, "{out}");
    let digests = repo_digests(&sandbox, elsewhere);
    for repository in
        ["localhost:5000/user/web", "localhost:5001/copy/web", "localhost:5001/mounted"]
    {
        assert!(digests.contains(&format!("{repository}@{first}")), "{digests:?}");
    }
    let copy = format!("oci:{}:1", sandbox.dir.path().join("copy").display());
    let from = format!("docker://{elsewhere}");
    let args = ["--insecure-policy", "copy", "--src-tls-verify=false", &from, &copy];
    tool("skopeo", &args);
}

#[test]
fn s15_push_names_what_is_not_here() {
    let sandbox = Sandbox::new();
    let words = ["tag does not exist: localhost:5000/nothing:latest"];
    sandbox.uctr(["push", "localhost:5000/nothing"]).fails(1, &words);
    let words = ["An image does not exist locally with the tag: localhost:5000/nothing"];
    sandbox.uctr(["push", "-a", "localhost:5000/nothing"]).fails(1, &words);
    let digest = format!("localhost:5000/nothing@sha256:{:064}", 0);
    sandbox.uctr(["push", &digest]).fails(1, &["cannot push a digest reference"]);
}

#[test]
fn two_pulls_of_one_image_download_it_once() {
    let sandbox = Sandbox::new();
    let image = Fake::new(&b"shared".repeat(1 << 18));
    let served = image.clone();
    let rogue = Rogue::new(move |request| served.reply(request));
    let name = format!("{}/shared", rogue.address);
    let start = || sandbox.command(["pull", &name]).stdout(Stdio::piped()).spawn().unwrap();
    let pulls = [start(), start(), start()];
    for pull in pulls {
        let out = pull.wait_with_output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
    assert_eq!(rogue.seen(&sha256(&image.layer)).len(), 1);
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
    assert_eq!(names(&sandbox).len(), 1);
    assert_eq!(blobs(&sandbox), 3);
}

#[test]
fn s11_search_lists_the_catalog() {
    let sandbox = Sandbox::new();
    let _registry = Registry::plain(&sandbox);
    let image = layout(&sandbox, "image", &[("/a", b"a")]);
    for name in ["user/web", "user/db", "webshop"] {
        fill(&image, &format!("localhost:5000/{name}:1"), &[]);
    }
    let out = sandbox.uctr(["search", "localhost:5000/web"]).ok().stdout;
    assert_eq!(out, "NAME\nlocalhost:5000/user/web\nlocalhost:5000/webshop\n");
    let out = sandbox.uctr(["search", "--limit", "1", "localhost:5000"]).ok().stdout;
    assert_eq!(out.lines().count(), 2, "{out}");
    sandbox.uctr(["search", "nginx"]).fails(1, &["docker.io has no catalog"]);
}

#[test]
fn s11_a_catalog_comes_in_pages() {
    let sandbox = Sandbox::new();
    let rogue = Rogue::new(|request| match request.path.as_str() {
        "/v2/_catalog?n=1000" => Reply::new(200, r#"{"repositories": ["a", "b"]}"#)
            .header("Link", "</v2/_catalog?last=b&n=1000>; rel=\"next\""),
        "/v2/_catalog?last=b&n=1000" => Reply::new(200, r#"{"repositories": ["c"]}"#)
            .header("Link", "<http://127.0.0.9:1/v2/_catalog>; rel=\"next\""),
        _ => Reply::new(200, ""),
    });
    let out = sandbox.uctr(["search", &rogue.address]).ok().stdout;
    // What another host has is not of this registry.
    assert_eq!(out.lines().count(), 4, "{out}");
}
