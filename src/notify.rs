//! Readiness for a service manager (sd_notify(3)): where the caller has `NOTIFY_SOCKET`, the
//! container gets a socket of its own, and of what is said there one thing is passed on: ready.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::container::Container;
use crate::spec::Config;
use crate::spec::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Kind, Mount};
use crate::spec::process::env_name;
use crate::state::Folder;
use crate::sys::mount::MountAttr;

const VARIABLE: &str = "NOTIFY_SOCKET";

/// Whether the caller wants to know when the container is ready.
pub fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_some()
}
/// Where the container finds the folder with its socket, as with runc.
pub(crate) const DESTINATION: &str = "/run/notify";
const FILE: &str = "notify.sock";

/// The service manager's socket; a leading `@` stands for the NUL of an abstract one.
fn manager() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|path| !path.is_empty())
}

/// Adds the folder of the container's socket to its mounts, and says so in its environment.
///
/// # Errors
/// When the folder can't be made.
pub fn add_to(config: &mut Config, folder: &Folder) -> Result<()> {
    let Some(process) = config.process.as_mut().filter(|_| manager().is_some()) else {
        return Ok(());
    };
    process.env.retain(|entry| env_name(entry.as_bytes()) != VARIABLE.as_bytes());
    process.env.push(CString::new(format!("{VARIABLE}={DESTINATION}/{FILE}"))?);
    let source = folder.make_notify().context(VARIABLE)?;
    let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    config.mounts.push(Mount {
        property: format!("{VARIABLE} ({DESTINATION})"),
        destination: DESTINATION.into(),
        kind: Kind::Bind { source, recursive: false },
        attr: MountAttr { set, ..MountAttr::default() },
        recursive_attr: MountAttr::default(),
        propagation: None,
        idmap: None,
    });
    Ok(())
}

/// The container's socket, and the service manager's.
pub struct Notify {
    socket: UnixDatagram,
    manager: String,
    pid: i32,
}

impl Notify {
    /// Opens the socket of `container`, whose first process is `pid`; none if it has none, or if
    /// there is nobody to tell.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(container: &Container, pid: i32) -> Result<Option<Self>> {
        let Some(manager) = manager() else { return Ok(None) };
        let Some(folder) = container.folder().notify_path()? else { return Ok(None) };
        let path: PathBuf = folder.join(FILE);
        let context = || format!("{VARIABLE}: make the container's own");
        let socket = UnixDatagram::bind(&path).with_context(context)?;
        // Whoever the program runs as.
        let everyone = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&path, everyone).with_context(context)?;
        socket.set_nonblocking(true).with_context(context)?;
        Ok(Some(Self { socket, manager, pid }))
    }

    /// Tells the service manager if the container has said that it is ready; tells the caller so,
    /// for whom it was the last thing to come.
    ///
    /// # Errors
    /// When the service manager can't be reached.
    pub fn pass_on(&self) -> Result<bool> {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            if buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return self
                    .tell()
                    .with_context(|| format!("{VARIABLE} {}", self.manager))
                    .map(|()| true);
            }
        }
        Ok(false)
    }

    fn tell(&self) -> std::io::Result<()> {
        let address = match self.manager.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&self.manager)?,
        };
        // The pid is what `main process` means to the manager from here on.
        let text = format!("MAINPID={}\nREADY=1", self.pid);
        UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
    }

    /// Waits until the container is ready or the process `pidfd` has ended.
    ///
    /// # Errors
    /// As [`Notify::pass_on`].
    pub fn wait(&self, pidfd: &OwnedFd) -> Result<()> {
        loop {
            let mut fds =
                [pidfd.as_fd(), self.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("wait for the container to be ready"),
            }
            if self.pass_on()? || fds[0].any() == Some(true) {
                return Ok(());
            }
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
