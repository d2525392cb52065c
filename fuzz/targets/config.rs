//! config.json, from its text to all that is planned before anything is made.
#![no_main]

use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ultari_fuzz::*;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed)
});

fuzz_target!(|text: &[u8]| {
    let bundle = Path::new("/bundle");
    ultari::check::leniently(text, bundle);
    let Some(config) = refused(ultari::spec::parse(text, bundle)) else { return };
    assert!(config.rootfs.is_absolute());
    config.mounts.iter().for_each(check_mount);
    config.process.iter().for_each(check_process);
    for path in config.masked_paths.iter().chain(&config.readonly_paths) {
        assert!(path.is_absolute());
    }
    for (path, _) in &config.sysctl {
        assert!(!path.is_empty() && !path.split('/').any(|part| part.is_empty() || part == ".."));
    }
    refused(ultari::cgroup::fuzzing::properties(&config.annotations));
    config.cgroups_path.iter().for_each(|path| check_cgroups_path(path));
    config.resources.iter().for_each(check_resources);
    let profile = config.seccomp.as_ref().and_then(|seccomp| refused(seccomp.profile()));
    profile.into_iter().for_each(check_seccomp);
});
