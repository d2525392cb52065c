//! `checkpoint`, and the flags that it shares with `restore`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use ultari::checkpoint::{CgroupsMode, Common, Options};
use ultari::container::Container;
use ultari::sys::fs::{standard_stream, take_inherited};

use crate::cli::{Checkpoint, EmptyNamespace, Images, ManageCgroups};

/// `criu`: what `--criu` says.
pub fn checkpoint(root: &Path, criu: Option<PathBuf>, args: Checkpoint) -> Result<()> {
    // Before anything else takes its number.
    let status = args.status_fd.filter(|fd| *fd >= 0).map(status_file).transpose()?;
    let lazy = args.images.lazy_pages;
    ensure!(lazy || status.is_none(), "--status-fd: nothing is told without --lazy-pages");
    ensure!(
        !lazy || args.page_server.is_some(),
        "--lazy-pages: --page-server has to say at which ADDRESS:PORT the pages are given"
    );
    ensure!(!lazy || !args.pre_dump, "--lazy-pages: leaves out the memory that --pre-dump saves");
    let options = Options {
        common: common(criu, args.images)?,
        parent_path: args.parent_path,
        leave_running: args.leave_running,
        pre_dump: args.pre_dump,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        link_remap: args.link_remap,
        page_server: args.page_server.as_deref().map(parse_address).transpose()?,
        status,
    };
    Container::open(root, &args.container_id)?.checkpoint(&options)
}

/// What the flags of both mean.
pub fn common(criu: Option<PathBuf>, args: Images) -> Result<Common> {
    let absolute = |flag: &str, path: PathBuf| {
        ensure!(!path.as_os_str().is_empty(), "{flag} needs a path");
        std::path::absolute(path).context("working directory")
    };
    Ok(Common {
        criu: criu.filter(|path| !path.as_os_str().is_empty()).unwrap_or("criu".into()),
        image_path: absolute("--image-path", args.image_path)?,
        work_path: args.work_path.map(|path| absolute("--work-path", path)).transpose()?,
        tcp_established: args.tcp_established,
        ext_unix_sk: args.ext_unix_sk,
        shell_job: args.shell_job,
        file_locks: args.file_locks,
        auto_dedup: args.auto_dedup,
        lazy_pages: args.lazy_pages,
        cgroups_mode: match args.manage_cgroups_mode {
            ManageCgroups::Soft => CgroupsMode::Soft,
            ManageCgroups::Full => CgroupsMode::Full,
            ManageCgroups::Strict => CgroupsMode::Strict,
            ManageCgroups::Ignore => CgroupsMode::Ignore,
        },
        empty_network: args.empty_ns.contains(&EmptyNamespace::Network),
    })
}

fn status_file(number: i32) -> Result<OwnedFd> {
    let step = || format!("--status-fd {number}");
    let file = match number {
        0..3 => standard_stream(number).try_clone_to_owned().with_context(step)?,
        _ => take_inherited(number).with_context(step)?,
    };
    let flags = fcntl(&file, FcntlArg::F_GETFL).with_context(step)?;
    let readable_only = flags & OFlag::O_ACCMODE.bits() == OFlag::O_RDONLY.bits();
    ensure!(!readable_only, "--status-fd {number}: is not open for writing");
    Ok(file)
}

fn parse_address(text: &str) -> Result<(String, u16)> {
    let parse = || {
        let (address, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (!address.is_empty()).then(|| (address.to_owned(), port))
    };
    parse().with_context(|| format!("--page-server {text:?}: expected ADDRESS:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_address_and_port() {
        assert_eq!(parse_address("127.0.0.1:27").unwrap(), ("127.0.0.1".into(), 27));
        assert_eq!(parse_address("::1:27").unwrap(), ("::1".into(), 27));
        for text in ["", "27", ":27", "a:", "a:0", "a:65536", "a:b"] {
            parse_address(text).unwrap_err();
        }
    }
}
