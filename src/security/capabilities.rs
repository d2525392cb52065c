//! Capability sets (capabilities(7)) as bit masks, and giving them to the calling process.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use oci_spec::runtime as oci;

use crate::sys::process::{self, CapabilitySets};

/// The five sets of `process.capabilities`; bit n is capability n. Empty without the property.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The most that any exec can gain.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be made effective.
    pub permitted: u64,
    /// Kept over an exec of a file with inheritable capabilities. Only ever what config.json
    /// says: more than that was CVE-2022-29162.
    pub inheritable: u64,
    /// Kept over an exec of any file.
    pub ambient: u64,
}

impl From<&oci::LinuxCapabilities> for Capabilities {
    fn from(sets: &oci::LinuxCapabilities) -> Self {
        let mask = |set: &Option<oci::Capabilities>| {
            let bit = |cap: &oci::Capability| bit(&format!("CAP_{cap}")).unwrap_or(0);
            set.iter().flatten().map(bit).fold(0, |mask, bit| mask | bit)
        };
        Self {
            bounding: mask(sets.bounding()),
            effective: mask(sets.effective()),
            permitted: mask(sets.permitted()),
            inheritable: mask(sets.inheritable()),
            ambient: mask(sets.ambient()),
        }
    }
}

fn bit(name: &str) -> Result<u64> {
    let capability = caps::Capability::from_str(name).map_err(|_| {
        anyhow!("{name}: no such capability (capabilities(7) lists them, as in CAP_NET_ADMIN)")
    })?;
    Ok(capability.bitmask())
}

impl Capabilities {
    /// Adds a capability named on the command line, with or without `CAP_`, to every set but the
    /// inheritable and ambient ones, which a capability of `exec --cap` has no business in.
    ///
    /// # Errors
    /// When nobody knows the name.
    pub fn add(&mut self, name: &str) -> Result<()> {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let bit = bit(&full)?;
        self.bounding |= bit;
        self.effective |= bit;
        self.permitted |= bit;
        Ok(())
    }

    /// Takes away from each set what the caller itself does not have: engines ask for all
    /// capabilities of the kernel when they mean all there are: `own`. Returns the names of those.
    pub fn limit_to_available(&mut self, own: &CapabilitySets) -> Vec<String> {
        let permitted = own.permitted;
        let wanted = self.bounding | self.effective | self.permitted | self.inheritable;
        let mut available = permitted;
        for cap in bits(wanted & permitted) {
            if !process::bounding_has(cap).unwrap_or(false) {
                available &= !(1 << cap);
            }
        }
        let missing = (wanted | self.ambient) & !available;
        for set in [
            &mut self.bounding,
            &mut self.effective,
            &mut self.permitted,
            &mut self.inheritable,
            &mut self.ambient,
        ] {
            *set &= available;
        }
        bits(missing).filter_map(name).collect()
    }

    /// Drops from the bounding set of this process what is not in ours. Needs `CAP_SETPCAP`, so
    /// it comes before any change of user.
    ///
    /// # Errors
    /// Names the capability that would not go.
    pub fn apply_bounding(&self) -> Result<()> {
        for cap in 0..64 {
            if self.bounding & 1 << cap != 0 {
                continue;
            }
            match process::bounding_drop(cap) {
                Ok(()) => {}
                // Past the last one that this kernel knows.
                Err(nix::errno::Errno::EINVAL) => break,
                Err(errno) => {
                    let name = name(cap).unwrap_or_else(|| cap.to_string());
                    return Err(anyhow!(errno))
                        .with_context(|| format!("process.capabilities.bounding: drop {name}"));
                }
            }
        }
        Ok(())
    }

    /// Sets the other four sets of this process: the last step before the program.
    ///
    /// # Errors
    /// When a set holds what this process does not have.
    pub fn apply(&self) -> Result<()> {
        let sets = CapabilitySets {
            effective: self.effective & self.permitted,
            permitted: self.permitted,
            inheritable: self.inheritable,
        };
        process::capset(sets).context("process.capabilities: set permitted and inheritable")?;
        if self.ambient != 0 {
            process::ambient_clear().context("process.capabilities.ambient: clear")?;
        }
        // What is not also permitted and inheritable cannot be ambient: runc warns and goes on.
        for cap in bits(self.ambient & self.permitted & self.inheritable) {
            process::ambient_raise(cap).with_context(|| {
                format!("process.capabilities.ambient: raise {}", name(cap).unwrap_or_default())
            })?;
        }
        Ok(())
    }
}

/// The sets of this process.
///
/// # Errors
/// None on a Linux kernel.
pub fn own() -> Result<CapabilitySets> {
    process::capget().context("read the capabilities of this process")
}

/// Whether this process may use `capability` in its own user namespace.
pub fn have(capability: caps::Capability) -> bool {
    own().is_ok_and(|own| own.may(capability))
}

fn bits(mask: u64) -> impl Iterator<Item = u8> {
    (0..64).filter(move |cap| mask & 1 << cap != 0)
}

fn name(cap: u8) -> Option<String> {
    let known = caps::all().into_iter().find(|known| known.index() == cap)?;
    Some(known.to_string())
}

/// The names of all capabilities that are known here, for `features`.
pub fn names() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_by_key(|cap| cap.index());
    all.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_types_has_its_number() {
        for (cap, number) in [
            (oci::Capability::Chown, 0),
            (oci::Capability::SysAdmin, 21),
            (oci::Capability::CheckpointRestore, 40),
        ] {
            assert_eq!(bit(&format!("CAP_{cap}")).unwrap(), 1 << number);
        }
    }

    #[test]
    fn a_capability_of_the_command_line_is_never_inheritable() {
        let mut sets = Capabilities::default();
        sets.add("net_admin").unwrap();
        sets.add("CAP_KILL").unwrap();
        assert_eq!(sets.permitted, 1 << 12 | 1 << 5);
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
        sets.add("FLY").unwrap_err();
    }
}
