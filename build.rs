//! Linker flags of the program `ultari`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let features = target("FEATURE");
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    // What src/sys/entry.rs has a first instruction for.
    if is_static && matches!(target("ARCH").as_str(), "x86_64" | "aarch64") {
        println!("cargo:rustc-link-arg-bin=ultari=-Wl,-e,ultari_entry");
    }
    // What starting a container executes lies side by side.
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if is_static && release && target("ARCH") == "x86_64" {
        let script = std::path::absolute("src/sys/link-order.ld").expect("working directory");
        println!("cargo:rerun-if-changed={}", script.display());
        println!("cargo:rustc-link-arg-bin=ultari=-Wl,-T,{}", script.display());
    }
    // Relocations as bitmaps: 10 KiB to read at each start instead of 270.
    println!("cargo:rustc-link-arg-bin=ultari=-Wl,-z,pack-relative-relocs");
}
