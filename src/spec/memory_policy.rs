//! `linux.memoryPolicy`: where the memory of the container's processes comes from
//! (set_mempolicy(2)).

use anyhow::{Result, ensure};
use oci_spec::runtime as oci;
use oci_spec::runtime::MemoryPolicyFlagType as Flag;
use oci_spec::runtime::MemoryPolicyModeType as Mode;

use super::list;

/// A checked policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// Mode and flags as `set_mempolicy(2)` takes them.
    pub mode: u32,
    /// Bit n of word w is node 64 w + n.
    pub nodes: Vec<u64>,
    /// As config.json has it, for messages.
    pub text: String,
}

/// The modes that `features` lists.
pub const MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];

/// The flags that `features` lists.
pub const FLAGS: [&str; 3] =
    ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// Checks and converts `linux.memoryPolicy`.
///
/// # Errors
/// For a list of nodes that is malformed or that the mode does not take, and flags that exclude
/// each other.
pub fn convert(policy: &oci::LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    const PROPERTY: &str = "linux.memoryPolicy.nodes";
    let mode = policy.mode();
    // include/uapi/linux/mempolicy.h
    let number = match mode {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let text = policy.nodes().as_deref().unwrap_or_default();
    let nodes = match text {
        "" => Vec::new(),
        text => list::parse(PROPERTY, text, list::MAX_NODES)?,
    };
    match mode {
        Mode::MpolDefault | Mode::MpolLocal => {
            ensure!(nodes.is_empty(), "{PROPERTY}: {mode} takes no nodes")
        }
        // Without nodes: the local one.
        Mode::MpolPreferred => {}
        _ => ensure!(!nodes.is_empty(), "{PROPERTY}: {mode} needs at least one node"),
    }
    let mut flags = 0;
    for flag in policy.flags().as_deref().unwrap_or_default() {
        flags |= match flag {
            Flag::MpolFStaticNodes => 1 << 15,
            Flag::MpolFRelativeNodes => 1 << 14,
            Flag::MpolFNumaBalancing => 1 << 13,
        };
    }
    ensure!(
        flags & (3 << 14) != 3 << 14,
        "linux.memoryPolicy.flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other"
    );
    Ok(MemoryPolicy { mode: number | flags, nodes, text: format!("{mode} of nodes {text:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<MemoryPolicy> {
        convert(&serde_json::from_str(json)?)
    }

    #[test]
    fn all_modes_and_flags_of_the_list_are_known() {
        for mode in MODES {
            let nodes = if ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode) { "" } else { "0-1" };
            policy(&format!(r#"{{"mode":"{mode}","nodes":"{nodes}"}}"#)).unwrap();
        }
        for flag in FLAGS {
            policy(&format!(r#"{{"mode":"MPOL_BIND","nodes":"0","flags":["{flag}"]}}"#)).unwrap();
        }
    }

    #[test]
    fn mode_nodes_and_flags_are_the_kernels() {
        let json = r#"{"mode":"MPOL_INTERLEAVE","nodes":"2-3","flags":["MPOL_F_STATIC_NODES"]}"#;
        let converted = policy(json).unwrap();
        assert_eq!((converted.mode, converted.nodes), (3 | 1 << 15, vec![0b1100]));
    }

    #[test]
    fn nodes_must_fit_the_mode() {
        for (json, property) in [
            (r#"{"mode":"MPOL_BIND"}"#, "linux.memoryPolicy.nodes"),
            (r#"{"mode":"MPOL_PREFERRED_MANY","nodes":""}"#, "linux.memoryPolicy.nodes"),
            (r#"{"mode":"MPOL_DEFAULT","nodes":"0"}"#, "linux.memoryPolicy.nodes"),
            (r#"{"mode":"MPOL_LOCAL","nodes":"0"}"#, "linux.memoryPolicy.nodes"),
            (r#"{"mode":"MPOL_BIND","nodes":"0-"}"#, "linux.memoryPolicy.nodes"),
            (r#"{"mode":"MPOL_BIND","nodes":"1024"}"#, "linux.memoryPolicy.nodes"),
            (
                r#"{"mode":"MPOL_BIND","nodes":"0",
                    "flags":["MPOL_F_STATIC_NODES","MPOL_F_RELATIVE_NODES"]}"#,
                "linux.memoryPolicy.flags",
            ),
        ] {
            let error = policy(json).unwrap_err().to_string();
            assert!(error.starts_with(property), "{error}");
        }
    }
}
