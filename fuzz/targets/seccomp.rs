//! `linux.seccomp` of config.json to BPF.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ultari_fuzz::*;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed)
});

fuzz_target!(|text: &[u8]| {
    let Ok(value) = serde_json::from_slice(text) else { return };
    if let Some(profile) = refused(ultari::spec::json::deserialize(value)) {
        check_seccomp(&profile);
    }
});
