//! An entry of `mounts`, as lines: destination, type, source, then the options.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::MountBuilder;
use ultari::spec::Namespaces;
use ultari_fuzz::*;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n').map(str::to_owned);
    let mut mount = MountBuilder::default();
    if let Some(destination) = lines.next() {
        mount = mount.destination(destination);
    }
    if let Some(fstype) = lines.next().filter(|fstype| !fstype.is_empty()) {
        mount = mount.typ(fstype);
    }
    if let Some(source) = lines.next().filter(|source| !source.is_empty()) {
        mount = mount.source(source);
    }
    let Ok(mount) = mount.options(lines.collect::<Vec<_>>()).build() else { return };
    let namespaces = Namespaces::default();
    let converted = ultari::spec::mount::convert(0, &mount, Path::new("/bundle"), &namespaces);
    if let Some(mount) = refused(converted) {
        check_mount(&mount);
    }
});
