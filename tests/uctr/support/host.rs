//! A host with one image, what its users ask of it, and what is on its disk.

use std::path::PathBuf;

use serde_json::Value;

use super::{Output, Sandbox, comes_about};

/// A sandbox with busybox, whose containers have no network.
pub struct Host(pub Sandbox);

impl Host {
    pub fn new() -> Self {
        Self(Sandbox::new().with_busybox())
    }

    pub fn uctr(&self, args: &[&str]) -> Output {
        self.0.uctr(args)
    }

    /// What a command says that must succeed.
    #[track_caller]
    pub fn says(&self, args: &[&str]) -> String {
        self.uctr(args).ok().stdout
    }

    /// `uctr run --network none FLAGS busybox COMMAND`
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        let args = [&["run", "--network", "none"], flags, &["busybox"], command].concat();
        self.uctr(&args)
    }

    /// What a shell in a container says.
    pub fn shell(&self, flags: &[&str], script: &str) -> String {
        self.run(&[&["--rm"], flags].concat(), &["sh", "-c", script]).ok().stdout
    }

    /// A container in the background, once its script has said `ready`; its ID.
    #[track_caller]
    fn detached(&self, name: &str, flags: &[&str], script: &str) -> String {
        let flags = [&["-d", "--name", name], flags].concat();
        let id = self.run(&flags, &["sh", "-c", script]).ok().stdout.trim().to_owned();
        let logs = || self.uctr(&["logs", name]);
        let ready = comes_about(|| logs().stdout.contains("ready"));
        assert!(ready, "{name} isn't ready: {:?}", logs());
        id
    }

    /// `run -d --name NAME` of a program that goes on; ended by TERM with 0.
    #[track_caller]
    pub fn service(&self, name: &str, flags: &[&str]) -> String {
        let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
        self.detached(name, flags, script)
    }

    /// A container that has done what `script` says, and goes on.
    #[track_caller]
    pub fn start(&self, name: &str, flags: &[&str], script: &str) -> String {
        self.detached(name, flags, &format!("{script}\necho ready; exec sleep 1000"))
    }

    /// A container that has ended with a status.
    pub fn ended(&self, name: &str, flags: &[&str], code: i32) -> String {
        let flags = [&["--name", name], flags].concat();
        let run = self.run(&flags, &["sh", "-c", &format!("exit {code}")]);
        assert_eq!(run.code, code, "{run:?}");
        self.says(&["ps", "-aq", "--no-trunc", "-f", &format!("name=^{name}$")]).trim().to_owned()
    }

    pub fn inspect(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.says(&["inspect", name])).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 1);
        all[0].clone()
    }

    /// The names that `ps` has.
    pub fn names(&self, args: &[&str]) -> Vec<String> {
        let args = [&["ps", "--format", "{{.Names}}"], args].concat();
        let mut names: Vec<String> = self.says(&args).lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.dir.path().join(name)
    }

    /// The same as text.
    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn folder(&self, id: &str) -> PathBuf {
        self.path("data/containers").join(id)
    }

    /// What is on record of the container whose name or ID this is.
    pub fn record(&self, name: &str) -> Value {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path("data/containers")).unwrap() {
            let Ok(text) = std::fs::read(entry.unwrap().path().join("record.json")) else {
                continue;
            };
            let record: Value = serde_json::from_slice(&text).unwrap();
            if record["name"] == name || record["id"] == name {
                found.push(record);
            }
        }
        assert_eq!(found.len(), 1, "containers {name}");
        found.remove(0)
    }

    pub fn status(&self, name: &str) -> String {
        self.record(name)["state"]["status"].as_str().unwrap().to_owned()
    }

    /// The IDs of all containers.
    pub fn ids(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("data/containers"));
        let entries = entries.into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.len() == 64).collect()
    }

    /// Nothing of the container is left.
    #[track_caller]
    pub fn is_gone(&self, id: &str) {
        self.0.is_gone(id);
    }
}
