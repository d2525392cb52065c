//! Registries that break off, lie, or want more than they may get: hardening.md's class "registry".

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::rogue::{Fake, INDEX, Reply, Request, Rogue, ranged, sha256};
use super::server::{names, unpacked};
use crate::support::Sandbox;

/// A layer that takes several reads.
fn image() -> Fake {
    Fake::new(&(0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}

/// Whatever the layer's answer is made to be.
fn with_layer(
    image: &Fake,
    answer: impl Fn(&Request, &[u8]) -> Reply + Send + Sync + 'static,
) -> Rogue {
    let image = image.clone();
    Rogue::new(move |request| match image.is_layer(request) {
        true => answer(request, &image.layer),
        false => image.reply(request),
    })
}

/// Nothing of the image may be seen: no name, no layer, and no blob of that digest.
#[track_caller]
fn nothing_is_there(sandbox: &Sandbox, image: &Fake) {
    assert!(names(sandbox).is_empty());
    assert!(unpacked(sandbox, "f").is_empty());
    let digest = sha256(&image.layer).replace(':', "/");
    let blob = sandbox.dir.path().join("data/images/blobs").join(digest);
    assert!(!blob.exists());
}

fn partials(sandbox: &Sandbox) -> Vec<PathBuf> {
    let dir = fs::read_dir(sandbox.dir.path().join("data/images/ingest")).unwrap();
    dir.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let sandbox = Sandbox::new();
    let image = image();
    let rogue = with_layer(&image, |request, layer| {
        let at = if request.headers.contains_key("range") { 400_000 } else { 500_000 };
        ranged(request, layer).cut(at)
    });
    let name = format!("{}/cut", rogue.address);
    sandbox.uctr(["pull", &name]).ok();
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
    let asked = rogue.seen(&sha256(&image.layer));
    let ranges: Vec<_> = asked.iter().map(|request| request.headers.get("range")).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[0].is_none());
    assert_eq!(ranges[1].unwrap(), "bytes=500000-");
    assert_eq!(ranges[2].unwrap(), "bytes=900000-");
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let sandbox = Sandbox::new();
    let image = image();
    let asked = AtomicUsize::new(0);
    let rogue = with_layer(&image, move |_, layer| {
        let reply = Reply::new(200, layer);
        if asked.fetch_add(1, Ordering::SeqCst) == 0 { reply.cut(500_000) } else { reply }
    });
    sandbox.uctr(["pull", &format!("{}/again", rogue.address)]).ok();
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
}

#[test]
fn another_part_than_asked_for_is_not_taken() {
    let sandbox = Sandbox::new();
    let image = image();
    // The second answer begins later than it should, the third is right.
    let asked = AtomicUsize::new(0);
    let rogue =
        with_layer(&image, move |request, layer| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(200, layer).cut(500_000),
            1 => {
                let range = format!("bytes 600000-{}/{}", layer.len() - 1, layer.len());
                Reply::new(206, &layer[600_000..]).header("Content-Range", &range)
            }
            _ => ranged(request, layer),
        });
    sandbox.uctr(["pull", &format!("{}/part", rogue.address)]).ok();
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
    let asked = rogue.seen(&sha256(&image.layer));
    assert_eq!(asked.len(), 3);
    assert!(!asked[2].headers.contains_key("range"));
}

#[test]
fn a_download_that_is_always_cut_is_given_up_and_gone_on_with_later() {
    let sandbox = Sandbox::new();
    let image = image();
    let rogue = with_layer(&image, |request, layer| ranged(request, layer).cut(1000));
    let name = format!("{}/never", rogue.address);
    sandbox.uctr(["pull", &name]).fails(1, &["download sha256:", "bytes"]);
    nothing_is_there(&sandbox, &image);
    let kept = partials(&sandbox);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let offset = fs::metadata(&kept[0]).unwrap().len();
    assert!(offset > 0);
    let honest = with_layer(&image, ranged);
    sandbox.uctr(["pull", &format!("{}/never", honest.address)]).ok();
    let asked = honest.seen(&sha256(&image.layer));
    assert_eq!(asked[0].headers["range"], format!("bytes={offset}-"));
    assert!(partials(&sandbox).is_empty());
}

#[test]
fn a_killed_pull_is_gone_on_with() {
    let sandbox = Sandbox::new();
    let image = image();
    let stalling = with_layer(&image, |_, layer| Reply {
        stalls: true,
        ..Reply::new(200, layer).cut(600_000)
    });
    let name = format!("{}/killed", stalling.address);
    let mut pull = sandbox.command(["pull", &name]).stdout(Stdio::null()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    let arrived = || {
        partials(&sandbox).iter().any(|path| fs::metadata(path).is_ok_and(|m| m.len() == 600_000))
    };
    while !sandbox.dir.path().join("data/images/ingest").exists() || !arrived() {
        assert!(Instant::now() < patience, "nothing was downloaded");
        sleep(Duration::from_millis(10));
    }
    pull.kill().unwrap();
    pull.wait().unwrap();
    nothing_is_there(&sandbox, &image);
    let honest = with_layer(&image, ranged);
    sandbox.uctr(["pull", &format!("{}/killed", honest.address)]).ok();
    let asked = honest.seen(&sha256(&image.layer));
    assert_eq!(asked[0].headers["range"], "bytes=600000-");
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
}

#[test]
fn what_was_left_and_is_damaged_is_downloaded_again() {
    let sandbox = Sandbox::new();
    let image = image();
    let cut = with_layer(&image, |request, layer| ranged(request, layer).cut(100_000));
    sandbox.uctr(["pull", &format!("{}/damaged", cut.address)]).fails(1, &[]);
    let left = &partials(&sandbox)[0];
    let mut bytes = fs::read(left).unwrap();
    bytes[1000] ^= 1;
    fs::write(left, bytes).unwrap();
    let honest = with_layer(&image, ranged);
    sandbox.uctr(["pull", &format!("{}/damaged", honest.address)]).ok();
    assert_eq!(unpacked(&sandbox, "f").len(), 1);
}

#[test]
fn a_blob_with_another_digest_is_refused() {
    let sandbox = Sandbox::new();
    let image = image();
    let rogue = with_layer(&image, |_, layer| {
        let mut wrong = layer.to_vec();
        wrong[100_000] ^= 1;
        Reply::new(200, wrong)
    });
    let words = ["has another digest"];
    sandbox.uctr(["pull", &format!("{}/digest", rogue.address)]).fails(1, &words);
    nothing_is_there(&sandbox, &image);
    assert!(partials(&sandbox).is_empty());
}

#[test]
fn a_configuration_with_another_digest_is_refused() {
    let sandbox = Sandbox::new();
    let image = image();
    let served = image.clone();
    let rogue = Rogue::new(move |request| {
        if request.path.ends_with(&sha256(&served.config)) {
            let other = String::from_utf8(served.config.clone()).unwrap();
            return Reply::new(200, other.replace("linux", "LINUX"));
        }
        served.reply(request)
    });
    let words = ["has another digest"];
    sandbox.uctr(["pull", &format!("{}/config", rogue.address)]).fails(1, &words);
    nothing_is_there(&sandbox, &image);
}

#[test]
fn a_manifest_with_another_digest_than_asked_for_is_refused() {
    let sandbox = Sandbox::new();
    let image = image();
    let other = Fake::new(b"other");
    let served = image.clone();
    let rogue = Rogue::new(move |request| served.reply(request));
    let name = format!("{}/manifest@{}", rogue.address, sha256(&other.manifest));
    sandbox.uctr(["pull", &name]).fails(1, &["its digest is"]);
    let served = image.clone();
    let rogue = Rogue::new(move |request| {
        let digest = format!("sha256:{:064}", 7);
        served.reply(request).header("Docker-Content-Digest", &digest)
    });
    let name = format!("{}/manifest", rogue.address);
    sandbox.uctr(["pull", &name]).fails(1, &["its digest is"]);
    nothing_is_there(&sandbox, &image);
}

#[test]
fn a_layer_that_is_shorter_or_longer_than_its_manifest_says_is_refused() {
    for difference in [-1i64, 1] {
        let sandbox = Sandbox::new();
        let mut image = image();
        image.describe(|manifest| {
            let size = &mut manifest["layers"][0]["size"];
            *size = (size.as_i64().unwrap() + difference).into();
        });
        let rogue = with_layer(&image, ranged);
        sandbox.uctr(["pull", &format!("{}/size", rogue.address)]).fails(1, &["bytes"]);
        nothing_is_there(&sandbox, &image);
    }
}

#[test]
fn a_body_without_end_stops_at_the_size_of_the_manifest() {
    let sandbox = Sandbox::new();
    let image = image();
    let rogue = with_layer(&image, |_, layer| Reply {
        endless: true,
        length: None,
        ..Reply::new(200, layer)
    });
    let words = ["longer than the"];
    sandbox.uctr(["pull", &format!("{}/endless", rogue.address)]).fails(1, &words);
    nothing_is_there(&sandbox, &image);
}

#[test]
fn a_layer_larger_than_the_disk_is_refused_before_it_is_downloaded() {
    let sandbox = Sandbox::new();
    let mut image = image();
    image.describe(|manifest| manifest["layers"][0]["size"] = (1u64 << 60).into());
    let rogue = with_layer(&image, |_, layer| Reply {
        endless: true,
        length: None,
        ..Reply::new(200, layer)
    });
    sandbox.uctr(["pull", &format!("{}/large", rogue.address)]).fails(1, &["are free at"]);
    assert!(rogue.seen(&sha256(&image.layer)).is_empty());
}

#[test]
fn documents_without_end_are_refused() {
    let sandbox = Sandbox::new();
    let image = image();
    let endless = || Reply { endless: true, length: None, ..Reply::new(200, "{\"a\": \"") };
    let served = image.clone();
    let rogue = Rogue::new(move |request| match request.path.contains("/manifests/") {
        true => endless(),
        false => served.reply(request),
    });
    let name = format!("{}/manifest", rogue.address);
    sandbox.uctr(["pull", &name]).fails(1, &["the manifest", "longer than"]);
    // An error's text is read only so far.
    let rogue = Rogue::new(move |_| Reply { status: 400, ..endless() });
    sandbox.uctr(["pull", &format!("{}/error", rogue.address)]).fails(1, &["400 Bad Request"]);
    let mut image = image;
    image.describe(|manifest| manifest["config"]["size"] = (1u64 << 40).into());
    let rogue = with_layer(&image, ranged);
    sandbox.uctr(["pull", &format!("{}/config", rogue.address)]).fails(1, &["too long"]);
    nothing_is_there(&sandbox, &image);
}

#[test]
fn manifests_that_are_none_are_refused() {
    let sandbox = Sandbox::new();
    let image = image();
    let both = r#"{"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}"#;
    let itself = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": [
        {{"mediaType": "{INDEX}", "size": 1, "digest": "sha256:{:064}",
          "platform": {{"os": "linux", "architecture": "amd64"}}}}]}}"#,
        1
    );
    let path = r#"{"schemaVersion": 2, "layers": [], "config": {"mediaType": "x", "size": 1,
        "digest": "sha256:../../../../etc/passwd"}}"#;
    let artifact = r#"{"schemaVersion": 2, "layers": [], "config": {"size": 2,
        "mediaType": "application/vnd.oci.empty.v1+json\u001b[2J",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}"#;
    for (text, word) in [
        ("", "no JSON object"),
        ("<html>", "no JSON object"),
        (r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema version is 1"),
        (both, "neither a manifest nor an index"),
        (itself.as_str(), "sha256:"),
        (path, "understand manifest"),
        (artifact, "no image of a container"),
    ] {
        let served = image.clone();
        let body = text.to_owned();
        let rogue = Rogue::new(move |request| match request.path.contains("/manifests/") {
            true => Reply::new(200, body.clone()),
            false => served.reply(request),
        });
        let out = sandbox.uctr(["pull", &format!("{}/none", rogue.address)]).fails(1, &[word]);
        assert!(!out.stderr.contains('\u{1b}'), "{}", out.stderr);
    }
    nothing_is_there(&sandbox, &image);
}

#[test]
fn layers_and_diff_ids_must_be_as_many() {
    let sandbox = Sandbox::new();
    let mut image = image();
    image.describe(|manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
    });
    let rogue = with_layer(&image, ranged);
    sandbox.uctr(["pull", &format!("{}/many", rogue.address)]).fails(1, &["2 layers"]);
    nothing_is_there(&sandbox, &image);
}

#[test]
fn a_redirect_to_another_host_does_not_carry_our_credentials() {
    let sandbox = Sandbox::new();
    let image = image();
    let served = image.clone();
    let other = Rogue::new(move |request| served.reply(request));
    let target = format!("http://{}/there/{}", other.address, sha256(&image.layer));
    let served = image.clone();
    let rogue = Rogue::new(move |request| {
        if !request.headers.contains_key("authorization") {
            return Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        match served.is_layer(request) {
            true => Reply::new(307, "").header("Location", &target),
            false => served.reply(request),
        }
    });
    let docker = sandbox.dir.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "dTpw"}}}}}}"#, rogue.address);
    fs::write(docker.join("config.json"), config).unwrap();
    sandbox.uctr(["pull", &format!("{}/redirect", rogue.address)]).ok();
    let here = rogue.seen("/blobs/");
    assert!(here.iter().all(|request| request.headers["authorization"] == "Basic dTpw"));
    let there = other.seen("/there/");
    assert_eq!(there.len(), 1);
    assert!(!there[0].headers.contains_key("authorization"), "{there:?}");
}

#[test]
fn redirects_that_lead_astray_are_refused() {
    for (target, word) in [
        ("http://192.0.2.1/blob", "plain HTTP is only used"),
        ("file:///etc/passwd", "neither HTTP nor HTTPS"),
        ("http://[", "Location"),
        ("/v2/loop", "redirects"),
    ] {
        let sandbox = Sandbox::new();
        let image = image();
        let served = image.clone();
        let rogue = Rogue::new(move |request| {
            if served.is_layer(request) || request.path == "/v2/loop" {
                return Reply::new(302, "").header("Location", target);
            }
            served.reply(request)
        });
        sandbox.uctr(["pull", &format!("{}/astray", rogue.address)]).fails(1, &[word]);
        nothing_is_there(&sandbox, &image);
    }
}

#[test]
fn a_registry_outside_may_not_send_us_to_services_of_this_machine() {
    let sandbox = Sandbox::new();
    let ip = ["address", "add", "192.0.2.7/32", "dev", "lo"];
    super::server::tool("ip", &ip);
    let image = image();
    let served = image.clone();
    let inside = Rogue::new(move |request| served.reply(request));
    let target = format!("http://{}/there/{}", inside.address, sha256(&image.layer));
    let served = image.clone();
    let rogue = Rogue::at("192.0.2.7", move |request| match served.is_layer(request) {
        true => Reply::new(302, "").header("Location", &target),
        false => served.reply(request),
    });
    let name = format!("{}/inside", rogue.address);
    let pull = ["pull", "--insecure-registry", &rogue.address, &name];
    sandbox.uctr(pull).fails(1, &["service of this machine"]);
    assert!(inside.seen("").is_empty());
}

#[test]
fn others_words_do_not_reach_the_terminal_raw() {
    let sandbox = Sandbox::new();
    let body = r#"{"errors": [{"code": "DENIED", "message": "\u001b]0;title\u0007\u001b[2J no"}]}"#;
    let rogue = Rogue::new(move |request| match request.path.as_str() {
        "/v2/" => Reply::new(200, ""),
        path if path.contains("_catalog") => {
            Reply::new(200, r#"{"repositories": ["a\u001b[2Jb", "c\nd"]}"#)
        }
        path if path.contains("tags/list") => {
            Reply::new(200, r#"{"tags": ["1\u001b[2J", "../x"]}"#)
        }
        _ => Reply::new(403, body),
    });
    let name = format!("{}/words", rogue.address);
    let out = sandbox.uctr(["pull", &name]).fails(1, &["denied: ", "pull access denied for"]);
    assert!(!out.stderr.contains(['\u{1b}', '\u{7}']), "{}", out.stderr);
    let out = sandbox.uctr(["search", &rogue.address]).ok().stdout;
    assert!(!out.contains('\u{1b}') && out.lines().count() == 3, "{out:?}");
    let out = sandbox.uctr(["pull", "-a", &name]).fails(1, &["invalid reference format"]);
    assert!(!out.stderr.contains('\u{1b}'), "{}", out.stderr);
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    let sandbox = Sandbox::new();
    let image = image();
    let asked = AtomicUsize::new(0);
    let served = image.clone();
    let rogue = Rogue::new(move |request| {
        if request.path.contains("/manifests/") && asked.fetch_add(1, Ordering::SeqCst) < 2 {
            return Reply::new(429, "").header("Retry-After", "0");
        }
        served.reply(request)
    });
    sandbox.uctr(["pull", &format!("{}/busy", rogue.address)]).ok();
    assert_eq!(rogue.seen("/manifests/").len(), 3);
}

#[test]
fn a_push_that_breaks_goes_on_in_parts() {
    push_after(0);
}

#[test]
fn a_push_to_a_server_in_trouble_goes_on_in_parts() {
    push_after(500);
}

/// The status is what the first try gets.
fn push_after(status: u16) {
    let sandbox = Sandbox::new();
    let image = image();
    let honest = with_layer(&image, ranged);
    let source = format!("{}/source", honest.address);
    sandbox.uctr(["pull", &source]).ok();
    let size = image.layer.len();
    let half = size / 2;
    let layer = sha256(&image.layer);
    let digest = layer.clone();
    let rogue = Rogue::new(move |request| {
        let path = request.path.as_str();
        let place = "/v2/target/blobs/uploads/here?state=a%20b";
        match request.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").header("Location", place),
            // Half of it arrived before the server fell over.
            "PUT" if path.contains(&digest.replace(':', "%3A")) && request.body.len() == size => {
                Reply::new(status, "")
            }
            "PUT" => Reply::new(201, ""),
            "GET" if path.contains("/uploads/") => {
                Reply::new(204, "").header("Range", &format!("0-{}", half - 1))
            }
            "PATCH" => Reply::new(202, "").header("Location", place),
            _ => Reply::new(200, ""),
        }
    });
    let target = format!("{}/target:1", rogue.address);
    sandbox.uctr(["tag", &source, &target]).ok();
    let out = sandbox.uctr(["push", &target]).ok().stdout;
    assert!(out.contains(": Pushed\n"), "{out}");
    let parts: Vec<_> =
        rogue.seen("/uploads/").into_iter().filter(|request| request.method == "PATCH").collect();
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].body, image.layer[half..]);
    assert_eq!(parts[0].headers["content-range"], format!("{half}-{}", size - 1));
    let manifest = rogue.seen("/manifests/1");
    assert_eq!(manifest.len(), 1);
    assert_eq!(manifest[0].body, image.manifest);
}

#[test]
fn a_push_that_is_refused_names_no_manifest() {
    let sandbox = Sandbox::new();
    let image = image();
    let honest = with_layer(&image, ranged);
    let source = format!("{}/source", honest.address);
    sandbox.uctr(["pull", &source]).ok();
    let rogue = Rogue::new(move |request| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => Reply::new(202, "").header("Location", "http://192.0.2.1/evil"),
        _ => Reply::new(200, ""),
    });
    let target = format!("{}/target:1", rogue.address);
    sandbox.uctr(["tag", &source, &target]).ok();
    sandbox.uctr(["push", &target]).fails(1, &["plain HTTP is only used"]);
    assert!(rogue.seen("/manifests/").is_empty());
}
