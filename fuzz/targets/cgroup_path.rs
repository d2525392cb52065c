//! `linux.cgroupsPath` for both drivers, and annotations that are properties of systemd's unit.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ultari_fuzz::*;

fuzz_target!(|text: &str| {
    check_cgroups_path(Path::new(text));
    let (key, value) = text.split_once('=').unwrap_or(("TimeoutStopSec", text));
    let key = format!("org.systemd.property.{key}");
    let annotations = BTreeMap::from([(key, value.to_owned())]);
    refused(ultari::cgroup::fuzzing::properties(&annotations));
});
