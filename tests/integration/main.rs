//! Black-box tests: they drive the built program as a user or an engine would, as root.
//!
//! `ULTARI_BIN` names the program under test, `bin/ultari` without it; any runtime with runc's
//! command line can be tried. Each test has a [`support::Sandbox`], whose end fails the test if a
//! process, mount, cgroup or file of its containers is left. Tests that can't be done on a host
//! say why, and how many there were is the last line.

mod bad_input;
mod cgroups;
mod cgroups_v1;
mod check;
mod checkpoint;
mod crash_matrix;
mod events;
mod exec;
mod exec_cgroup;
mod features;
mod filesystem;
mod hooks;
mod host_mounts;
mod identity;
mod idmap;
mod install;
mod leftovers;
mod lifecycle;
mod limits;
mod load;
mod mounts;
mod namespaces;
mod net_devices;
mod notify;
mod process;
mod properties;
mod real_configs;
mod rootless;
mod seccomp;
mod seccomp_notify;
mod security;
mod start_errors;
mod support;
mod surroundings;
mod systemd;
mod terminal;
mod timings;
mod unsafe_code;
mod update;
