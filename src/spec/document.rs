//! The two outermost objects of config.json. The parts are types of the crate `oci-spec`; with its
//! `Spec` and `Process` would come a regular expression engine, for one property, which made a third
//! of what the program writes into memory at its start.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime as oci;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The whole of it (config.md).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    pub oci_version: String,
    pub root: Option<oci::Root>,
    pub mounts: Option<Vec<oci::Mount>>,
    pub process: Option<Process>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub hooks: Option<oci::Hooks>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub linux: Option<oci::Linux>,
    // Those of other systems are known, and nothing else.
    #[serde(rename = "solaris")]
    _solaris: Option<IgnoredAny>,
    #[serde(rename = "windows")]
    _windows: Option<IgnoredAny>,
    #[serde(rename = "vm")]
    _vm: Option<IgnoredAny>,
    #[serde(rename = "zos")]
    _zos: Option<IgnoredAny>,
}

/// Its object `process`, which also stands alone as process.json. Without execCPUAffinity: see
/// [`super::process::take_affinity`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    pub terminal: Option<bool>,
    pub console_size: Option<oci::Box>,
    pub user: oci::User,
    pub args: Option<Vec<String>>,
    #[serde(rename = "commandLine")]
    _command_line: Option<IgnoredAny>,
    pub env: Option<Vec<String>>,
    pub cwd: PathBuf,
    pub capabilities: Option<oci::LinuxCapabilities>,
    pub rlimits: Option<Vec<oci::PosixRlimit>>,
    pub no_new_privileges: Option<bool>,
    pub apparmor_profile: Option<String>,
    pub oom_score_adj: Option<i32>,
    pub selinux_label: Option<String>,
    pub io_priority: Option<oci::LinuxIOPriority>,
    pub scheduler: Option<oci::Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    _exec_cpu_affinity: Option<IgnoredAny>,
}
