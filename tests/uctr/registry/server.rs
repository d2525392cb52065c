//! Debian's docker-registry, started and ended by a test, and what fills it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Output, Sandbox, output};

/// A registry at port 5000 of the test's network namespace.
#[derive(Debug)]
pub struct Registry {
    child: Child,
}

impl Registry {
    /// Without TLS and users.
    pub fn plain(sandbox: &Sandbox) -> Self {
        Self::start(sandbox, "localhost:5000", "")
    }

    /// `http` and `auth` are sections of its configuration.
    pub fn start(sandbox: &Sandbox, address: &str, sections: &str) -> Self {
        let dir = sandbox.dir.path().join(format!("registry-{}", address.replace(':', "-")));
        fs::create_dir_all(&dir).unwrap();
        let (http, rest) = sections.split_once("\n---\n").unwrap_or(("", sections));
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {dir}}}\n  \
             delete: {{enabled: true}}\nhttp:\n  addr: {address}\n{http}\n{rest}\n",
            dir = dir.display()
        );
        let file = dir.join("config.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is one of Debian's packages");
        let mut registry = Self { child };
        let patience = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            let ended = registry.child.try_wait().unwrap();
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "docker-registry: {ended:?}\n{}", log());
            assert!(Instant::now() < patience, "docker-registry does not answer\n{}", log());
            sleep(Duration::from_millis(20));
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool to its end.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> Output {
    output(Command::new(program).args(args).stdin(Stdio::null())).ok()
}

/// An image layout made by umoci, with a layer for each of `files` (name, content); its tag is `1`.
pub fn layout(sandbox: &Sandbox, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let dir = sandbox.dir.path().join(name);
    let image = format!("{}:1", dir.display());
    tool("umoci", &["init", "--layout", dir.to_str().unwrap()]);
    tool("umoci", &["new", "--image", &image]);
    for (at, (file, content)) in files.iter().enumerate() {
        let source = sandbox.dir.path().join(format!("{name}-{at}"));
        fs::write(&source, content).unwrap();
        tool("umoci", &["insert", "--image", &image, source.to_str().unwrap(), file]);
    }
    dir
}

/// Copies an image layout's tag `1` to a registry with skopeo.
pub fn fill(layout: &Path, name: &str, flags: &[&str]) {
    let from = format!("oci:{}:1", layout.display());
    let to = format!("docker://{name}");
    let mut args = vec!["--insecure-policy", "copy", "--dest-tls-verify=false"];
    args.extend(flags);
    args.extend([from.as_str(), to.as_str()]);
    tool("skopeo", &args);
}

/// The digest that skopeo finds.
pub fn digest(name: &str) -> String {
    let name = format!("docker://{name}");
    let args = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &name];
    tool("skopeo", &args).stdout.trim().to_owned()
}

/// The contents of that file in all layers that were unpacked.
pub fn unpacked(sandbox: &Sandbox, file: &str) -> Vec<Vec<u8>> {
    let Ok(layers) = fs::read_dir(sandbox.dir.path().join("data/layers")) else {
        return Vec::new();
    };
    let files = layers.map(|layer| layer.unwrap().path().join("fs").join(file));
    files.filter_map(|path| fs::read(path).ok()).collect()
}

/// What is named in the store.
pub fn names(sandbox: &Sandbox) -> Vec<String> {
    let path = sandbox.dir.path().join("data/images/index.json");
    let Ok(text) = fs::read(path) else { return Vec::new() };
    let index: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let name = |entry: &serde_json::Value| {
        entry["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned)
    };
    index["manifests"].as_array().unwrap().iter().filter_map(name).collect()
}

/// How many blobs are in the store.
pub fn blobs(sandbox: &Sandbox) -> usize {
    let dir = sandbox.dir.path().join("data/images/blobs/sha256");
    fs::read_dir(dir).map_or(0, Iterator::count)
}
