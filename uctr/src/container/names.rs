//! IDs and names of containers.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::{Lock, list};
use crate::paths::Paths;

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ample", "arctic", "autumn", "azure", "balmy", "bold", "brave", "breezy",
    "brief", "bright", "brisk", "calm", "candid", "clever", "coral", "cosy", "crisp", "dapper",
    "daring", "deft", "eager", "early", "earnest", "fleet", "fond", "frank", "gentle", "glad",
    "golden", "grand", "hardy", "hasty", "honest", "humble", "jolly", "keen", "kind", "lively",
    "lucid", "lunar", "mellow", "merry", "mild", "nimble", "noble", "patient", "placid", "plucky",
    "polite", "prompt", "quiet", "rapid", "rustic", "serene", "silver", "sincere", "steady",
    "sunny", "swift", "tidy", "vivid", "witty",
];

const NOUNS: [&str; 64] = [
    "acorn", "anchor", "aspen", "badger", "basin", "beacon", "birch", "bison", "brook", "canyon",
    "cedar", "cliff", "clover", "comet", "condor", "creek", "cricket", "delta", "dune", "ember",
    "falcon", "fern", "finch", "fjord", "forest", "fox", "gecko", "glacier", "grove", "harbour",
    "hazel", "heron", "island", "juniper", "lagoon", "lantern", "lark", "lichen", "lynx", "maple",
    "marten", "meadow", "meteor", "moss", "oasis", "orchard", "osprey", "otter", "pebble", "pine",
    "plover", "prairie", "puffin", "quarry", "raven", "reef", "robin", "sparrow", "spruce",
    "summit", "thicket", "tundra", "walnut", "willow",
];

/// Whoever gives or takes a name holds it: no two containers get the same.
///
/// # Errors
/// When the folder of the containers can't be made.
pub fn lock(paths: &Paths) -> Result<Lock> {
    let folder = paths.containers();
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("names.lock");
    let file = std::fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", path.display()))
}

/// Checks that a container may be called so; the caller holds [`lock`].
///
/// # Errors
/// In docker's words, when the name is taken or is none.
pub fn check(paths: &Paths, name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    ensure!(
        name.len() > 1
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(fine),
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    );
    if let Some(other) = list(paths)?.into_iter().find(|other| other.record.name == name) {
        bail!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You \
             have to remove (or rename) that container to be able to reuse that name.",
            other.record.id
        );
    }
    Ok(())
}

/// A name that no container has; the caller holds [`lock`].
///
/// # Errors
/// When there is no randomness.
pub fn random_name(paths: &Paths) -> Result<String> {
    let taken = list(paths)?;
    let mut number = 0u32;
    loop {
        let [a, b] = random()?;
        let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
        let noun = NOUNS[usize::from(b) % NOUNS.len()];
        let name = match number {
            // Most names are taken by now.
            32.. => format!("{adjective}_{noun}{number}"),
            _ => format!("{adjective}_{noun}"),
        };
        if taken.iter().all(|other| other.record.name != name) {
            return Ok(name);
        }
        number += 1;
    }
}

/// 64 hex digits. Never 12 decimal ones first: that part becomes the hostname, and must not look
/// like a number.
///
/// # Errors
/// When there is no randomness.
pub fn random_id() -> Result<String> {
    loop {
        let bytes: [u8; 32] = random()?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if !id[..12].bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(id);
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut source = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    source.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s35_random_names_are_two_words() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { data: folder.path().into(), run: folder.path().into() };
        let name = random_name(&paths).unwrap();
        let (adjective, noun) = name.split_once('_').unwrap();
        assert!(ADJECTIVES.contains(&adjective) && NOUNS.contains(&noun), "{name}");
        check(&paths, &name).unwrap();
    }

    #[test]
    fn s34_names_that_docker_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { data: folder.path().into(), run: folder.path().into() };
        for name in ["", "a", "-a", "a b", "a/b", "ä1"] {
            let error = check(&paths, name).unwrap_err().to_string();
            assert!(error.contains("Invalid container name"), "{error}");
        }
        check(&paths, "a_b.c-1").unwrap();
    }
}
