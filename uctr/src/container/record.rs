//! What is known of a container on disk, and how it is found.
//!
//! `containers/<id>/record.json` is the one truth; it is replaced whole (temp + rename) under a
//! lock on `containers/<id>/lock`. [`Config`] and [`HostConfig`] have docker's names, so that
//! `inspect` prints them as they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::network::{Attached, PortMapping, Wish};
use crate::volume::MountPoint;

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// 64 hex digits.
    pub id: String,
    /// Without docker's slash.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The image as the user named it.
    pub image: String,
    /// The digest of the image's configuration.
    pub image_id: Digest,
    /// The digest of the image's manifest.
    pub manifest: Digest,
    /// The image's layers, the lowest first.
    pub layers: Vec<Digest>,
    /// The image's platform, as `linux`.
    pub platform: String,
    /// Program, environment and what else is portable.
    pub config: Config,
    /// What binds it to this host.
    pub host_config: HostConfig,
    /// Program and arguments in full: entrypoint and command.
    pub args: Vec<String>,
    /// All mounts of volumes, folders and tmpfs.
    pub mounts: Vec<MountPoint>,
    /// The networks that it joins when it starts; none with `--network host`, `none` or
    /// `container:X`.
    pub wishes: Vec<Wish>,
    /// The ports that it publishes when it starts.
    pub ports: Vec<PortMapping>,
    /// What it has of its networks while it runs.
    #[serde(default)]
    pub network: Attached,
    /// Where it is in its life, as last written down; [`super::Container::state`] says the truth.
    pub state: State,
    /// How often the restart policy started it anew.
    #[serde(default)]
    pub restart_count: u32,
    /// `stop` or `kill` was asked for: the restart policy has to leave it alone.
    #[serde(default)]
    pub stopped_by_user: bool,
}

/// Docker's word for where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    #[default]
    Created,
    /// Its program runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Ended; the restart policy waits before it starts it again.
    Restarting,
    /// `rm` is at it.
    Removing,
    /// Ended.
    Exited,
    /// Ended, and could not be removed wholly.
    Dead,
}

impl Status {
    /// As docker writes it: `created`, `running` …
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether it has processes.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Where a container is in its life, and how it came there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Docker's word for it.
    pub status: Status,
    /// Of its first process on the host, 0 without.
    pub pid: i32,
    /// Of the last run; 128 + n for signal n.
    pub exit_code: i32,
    /// The kernel killed one of its processes for lack of memory.
    pub oom_killed: bool,
    /// Why it could not be started, if so.
    pub error: String,
    /// The last start.
    pub started_at: Option<Timestamp>,
    /// The last end.
    pub finished_at: Option<Timestamp>,
}

/// Docker's `.Config`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// The first 12 digits of the ID unless given.
    pub hostname: String,
    /// `--domainname`
    pub domainname: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// `-i`, or `-a stdin`.
    pub attach_stdin: bool,
    /// In the foreground.
    pub attach_stdout: bool,
    /// In the foreground.
    pub attach_stderr: bool,
    /// `80/tcp` → {}; the image's and `--expose`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `-t`
    pub tty: bool,
    /// `-i`
    pub open_stdin: bool,
    /// The end of the first client's input is the program's.
    pub stdin_once: bool,
    /// The image's with `-e` and `--env-file`.
    pub env: Vec<String>,
    /// The command after the image's name, else the image's.
    pub cmd: Option<Vec<String>>,
    /// As the user named it.
    pub image: String,
    /// The image's anonymous volumes and those of `-v /path`.
    pub volumes: Option<BTreeMap<String, Empty>>,
    /// Where the program starts.
    pub working_dir: String,
    /// `--entrypoint`, else the image's.
    pub entrypoint: Option<Vec<String>>,
    /// The image's with `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--stop-signal`, else the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `--stop-timeout`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
}

/// JSON's `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Docker's `.HostConfig`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `-v`
    pub binds: Vec<String>,
    /// `--mount`, as given.
    pub mounts: Vec<String>,
    /// `--tmpfs`: path → options.
    pub tmpfs: BTreeMap<String, String>,
    /// `--volumes-from`
    pub volumes_from: Vec<String>,
    /// `--cidfile`
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    /// `--log-driver`, `--log-opt`
    pub log_config: LogConfig,
    /// The first `--network`: `bridge`, `host`, `none`, `container:<id>` or a network's name.
    pub network_mode: String,
    /// `80/tcp` → where on the host, as asked for.
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    /// `--restart`
    pub restart_policy: RestartPolicy,
    /// `--rm`
    pub auto_remove: bool,
    /// `--cap-add`
    pub cap_add: Vec<String>,
    /// `--cap-drop`
    pub cap_drop: Vec<String>,
    /// `private` or `host`
    pub cgroupns_mode: String,
    /// `--dns`
    pub dns: Vec<String>,
    /// `--dns-option`
    pub dns_options: Vec<String>,
    /// `--dns-search`
    pub dns_search: Vec<String>,
    /// `--add-host`
    pub extra_hosts: Vec<String>,
    /// `--group-add`
    pub group_add: Vec<String>,
    /// `private`, `host`, `container:<id>` …
    pub ipc_mode: String,
    /// `--link`
    pub links: Vec<String>,
    /// `--oom-score-adj`
    pub oom_score_adj: i32,
    /// Empty (its own), `host` or `container:<id>`.
    pub pid_mode: String,
    /// `--privileged`
    pub privileged: bool,
    /// `-P`
    pub publish_all_ports: bool,
    /// `--read-only`
    pub readonly_rootfs: bool,
    /// `--security-opt`
    pub security_opt: Vec<String>,
    /// Empty (its own) or `host`.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// Bytes.
    pub shm_size: i64,
    /// `--sysctl`
    pub sysctls: BTreeMap<String, String>,
    /// `ultari`
    pub runtime: String,
    /// `--cpu-shares`
    pub cpu_shares: u64,
    /// Bytes; 0 is no limit.
    pub memory: i64,
    /// `--cpus` × 10⁹; 0 is no limit.
    pub nano_cpus: i64,
    /// `--cgroup-parent`
    pub cgroup_parent: String,
    /// `--cpu-period`, µs
    pub cpu_period: u64,
    /// `--cpu-quota`, µs
    pub cpu_quota: i64,
    /// `--cpuset-cpus`
    pub cpuset_cpus: String,
    /// `--cpuset-mems`
    pub cpuset_mems: String,
    /// `--device`
    pub devices: Vec<Device>,
    /// Bytes; 0 is none.
    pub memory_reservation: i64,
    /// Memory and swap in bytes; -1 is no limit, 0 the default.
    pub memory_swap: i64,
    /// `--pids-limit`; none or ≤ 0 is no limit.
    pub pids_limit: Option<i64>,
    /// `--ulimit`
    pub ulimits: Vec<Ulimit>,
    /// `--init`
    pub init: Option<bool>,
    /// Paths that the container sees empty.
    pub masked_paths: Vec<String>,
    /// Paths that it can't write.
    pub readonly_paths: Vec<String>,
}

/// Where the output goes: always to files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    /// `json-file` or `none`
    #[serde(rename = "Type")]
    pub kind: String,
    /// `max-size`, `max-file`
    pub config: BTreeMap<String, String>,
}

/// `-p`, as docker's inspect has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortBinding {
    /// Empty for all.
    pub host_ip: String,
    /// Empty for any.
    pub host_port: String,
}

/// `--restart name[:count]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `no`, `always`, `unless-stopped` or `on-failure`.
    pub name: String,
    /// 0 is without end.
    pub maximum_retry_count: u32,
}

/// `--device`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Device {
    /// A device, or a folder of some.
    pub path_on_host: PathBuf,
    /// Where it appears.
    pub path_in_container: PathBuf,
    /// Some of `rwm`.
    pub cgroup_permissions: String,
}

/// `--ulimit name=soft[:hard]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// `nofile` …
    pub name: String,
    /// -1 is no limit.
    pub soft: i64,
    /// -1 is no limit.
    pub hard: i64,
}
