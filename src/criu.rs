//! Talking to criu, which takes process trees apart and puts them together again.
//!
//! criu is started as a worker (`criu swrk FD`) for one request and speaks protocol buffers over a
//! SEQPACKET socket; the messages are declared here as far as they are used (criu's
//! `images/rpc.proto`, <https://criu.org/RPC>). While it works it sends notices of what it has come
//! to, each of which it wants to be answered.

use std::io::{IoSliceMut, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send,
    socketpair,
};
use prost::Message;

use crate::sys;

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
}

/// `criu_opts`. What is left at its default is not sent.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Options {
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    #[prost(int32, tag = "2")]
    pub pid: i32,
    #[prost(bool, tag = "3")]
    pub leave_running: bool,
    #[prost(bool, tag = "4")]
    pub ext_unix_sk: bool,
    #[prost(bool, tag = "5")]
    pub tcp_established: bool,
    #[prost(bool, tag = "6")]
    pub evasive_devices: bool,
    #[prost(bool, tag = "7")]
    pub shell_job: bool,
    #[prost(bool, tag = "8")]
    pub file_locks: bool,
    #[prost(int32, tag = "9")]
    pub log_level: i32,
    #[prost(string, tag = "10")]
    pub log_file: String,
    #[prost(message, optional, tag = "11")]
    pub page_server: Option<PageServer>,
    #[prost(bool, tag = "12")]
    pub notify_scripts: bool,
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    #[prost(bool, tag = "15")]
    pub track_mem: bool,
    #[prost(bool, tag = "16")]
    pub auto_dedup: bool,
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    #[prost(bool, tag = "18")]
    pub link_remap: bool,
    #[prost(message, repeated, tag = "25")]
    pub cg_root: Vec<CgroupRoot>,
    #[prost(bool, tag = "26")]
    pub rst_sibling: bool,
    #[prost(message, repeated, tag = "27")]
    pub inherit_fd: Vec<InheritFd>,
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    #[prost(uint32, tag = "38")]
    pub empty_ns: u32,
    #[prost(message, repeated, tag = "39")]
    pub join_ns: Vec<JoinNamespace>,
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    #[prost(bool, tag = "46")]
    pub tcp_skip_in_flight: bool,
    #[prost(bool, tag = "48")]
    pub lazy_pages: bool,
    #[prost(bool, tag = "50")]
    pub orphan_pts_master: bool,
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    #[prost(string, optional, tag = "53")]
    pub lsm_profile: Option<String>,
    #[prost(string, optional, tag = "63")]
    pub lsm_mount_context: Option<String>,
}

/// `criu_page_server_info`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PageServer {
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(int32, tag = "2")]
    pub port: i32,
}

/// `cgroup_root`; for all hierarchies, since no controller is named.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CgroupRoot {
    #[prost(string, required, tag = "2")]
    pub path: String,
}

/// `inherit_fd`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InheritFd {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// `join_namespace`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JoinNamespace {
    #[prost(string, required, tag = "1")]
    pub ns: String,
    #[prost(string, required, tag = "2")]
    pub ns_file: String,
}

/// `criu_features`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Features {
    #[prost(bool, tag = "1")]
    pub mem_track: bool,
    #[prost(bool, tag = "2")]
    pub lazy_pages: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
    #[prost(message, optional, tag = "5")]
    features: Option<Features>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "5")]
    notify: Option<Notice>,
    #[prost(message, optional, tag = "8")]
    features: Option<Features>,
}

/// `criu_notify`: what criu has come to.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Notice {
    #[prost(string, tag = "1")]
    pub script: String,
    #[prost(int32, tag = "2")]
    pub pid: i32,
}

/// Who answers criu's notices; a descriptor may come with one.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(&Notice, Option<OwnedFd>) -> Result<()>;

/// A copy of a descriptor that criu inherits, under the same number.
///
/// # Errors
/// When it is not open.
pub(crate) fn for_criu(fd: impl std::os::fd::AsFd) -> Result<OwnedFd> {
    // Above those that criu has in use when it starts.
    let number = fcntl(fd, FcntlArg::F_DUPFD(10)).context("duplicate a descriptor for criu")?;
    Ok(sys::fs::received(number))
}

/// A criu at work on one request.
pub(crate) struct Criu {
    child: Child,
    socket: OwnedFd,
    /// What it says before it has opened its log.
    output: std::fs::File,
}

impl Criu {
    /// Starts the program `path` for anything but a restore.
    ///
    /// # Errors
    /// When there is no criu.
    pub fn start(path: &Path) -> Result<Self> {
        Self::start_for_restore(path, Stdio::null(), false)
    }

    /// Starts the program `path`. It inherits what [`for_criu`] made; its standard input becomes the
    /// terminal of shell jobs. `confined`: what it makes can gain no privileges.
    ///
    /// # Errors
    /// When there is no criu.
    pub fn start_for_restore(path: &Path, stdin: Stdio, confined: bool) -> Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("make a socket for criu")?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).context("let criu inherit it")?;
        let output = memfd_create(c"criu", MFdFlags::MFD_CLOEXEC).context("memory for output")?;
        let output = std::fs::File::from(output);
        let copy = || output.try_clone().context("duplicate a descriptor");
        let mut command = Command::new(path);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        command.stdin(stdin).stdout(copy()?).stderr(copy()?);
        sys::process::spawn_unblocked(&mut command);
        if confined {
            sys::process::spawn_without_new_privileges(&mut command);
        }
        let child = command.spawn().with_context(|| {
            format!(
                "start {} (checkpoints are made with it: apt-get install criu, or say where it is \
                 by --criu)",
                path.display()
            )
        })?;
        Ok(Self { child, socket, output })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Makes one request and waits for its end; `log` is where criu writes its log.
    ///
    /// # Errors
    /// With the lines in which criu says why, or what the listener said.
    pub fn ask(self, kind: Kind, options: Options, log: &Log, listen: Listener) -> Result<()> {
        let request = Request { kind: kind as i32, options: Some(options), ..Request::default() };
        let outcome = self.converse(&request, listen);
        let (ended, said) = self.end()?;
        match outcome {
            Ok(Some(response)) if response.success => Ok(()),
            Ok(_) => {
                let why = [log.causes(), causes(&said)].into_iter().find(|text| !text.is_empty());
                let why = why.unwrap_or_else(|| format!("it ended with {ended}"));
                match log.path.exists() {
                    true => bail!("{why} (all of it: {})", log.path.display()),
                    false => bail!("{why}"),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Asks which of its optional features work on this kernel.
    ///
    /// # Errors
    /// When criu does not work at all.
    pub fn features(self) -> Result<Features> {
        let features = Some(Features { mem_track: true, lazy_pages: true });
        let request = Request { kind: Kind::FeatureCheck as i32, features, ..Request::default() };
        let response = self.converse(&request, &mut |_, _| Ok(()))?;
        let (ended, said) = self.end()?;
        match response.and_then(|response| response.features) {
            Some(features) => Ok(features),
            None => bail!("criu does not work here ({ended}): {}", causes(&said)),
        }
    }

    /// The answer; none if criu ends without one.
    fn converse(&self, request: &Request, listen: Listener) -> Result<Option<Response>> {
        // If it is gone already its words are what matters, not this.
        let _ = self.send(request);
        loop {
            let Some((response, fd)) = self.receive()? else { return Ok(None) };
            let notice = match response.notify {
                Some(notice) if response.kind == Kind::Notify as i32 => notice,
                _ => return Ok(Some(response)),
            };
            let outcome = listen(&notice, fd);
            let answer = Request {
                kind: Kind::Notify as i32,
                notify_success: Some(outcome.is_ok()),
                ..Request::default()
            };
            let sent = self.send(&answer);
            if let Err(error) = outcome {
                // criu undoes what it has done, which may take a moment.
                while let Ok(Some((response, _))) = self.receive() {
                    if response.kind != Kind::Notify as i32 {
                        break;
                    }
                    let _ = self.send(&answer);
                }
                return Err(error);
            }
            sent.with_context(|| format!("answer criu's {}", notice.script))?;
        }
    }

    fn send(&self, request: &Request) -> Result<()> {
        let bytes = request.encode_to_vec();
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = send(self.socket.as_raw_fd(), &bytes, flags).context("speak to criu")?;
        ensure!(sent == bytes.len(), "speak to criu: the message was cut");
        Ok(())
    }

    fn receive(&self) -> Result<Option<(Response, Option<OwnedFd>)>> {
        let mut bytes = [0u8; 64 * 1024];
        let mut space = nix::cmsg_space!([i32; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, fd) = {
            let mut data = [IoSliceMut::new(&mut bytes)];
            let received = loop {
                let fd = self.socket.as_raw_fd();
                match recvmsg::<UnixAddr>(fd, &mut data, Some(&mut space), flags) {
                    Err(Errno::EINTR) => {}
                    // It died with our last message unread.
                    Err(Errno::ECONNRESET) => return Ok(None),
                    other => break other.context("listen to criu")?,
                }
            };
            let fd = received.cmsgs().context("listen to criu")?.find_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            (received.bytes, fd.map(sys::fs::received))
        };
        match length {
            0 => Ok(None),
            length => {
                let response = Response::decode(&bytes[..length]);
                Ok(Some((response.context("criu: a message that makes no sense")?, fd)))
            }
        }
    }

    /// How it has ended, and what it has said.
    fn end(mut self) -> Result<(ExitStatus, String)> {
        // It may wait for more.
        drop(self.socket);
        let ended = self.child.wait().context("wait for criu")?;
        let mut text = String::new();
        let _ = self.output.rewind().and_then(|()| self.output.read_to_string(&mut text));
        Ok((ended, text))
    }
}

/// criu's log of one request.
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    /// The log in the file `path`. What an earlier request has left there is removed: should criu
    /// not come to open it, that would be taken for the reason.
    pub fn new(path: PathBuf) -> Self {
        let _ = std::fs::remove_file(&path);
        Self { path }
    }

    fn causes(&self) -> String {
        causes(&String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()))
    }
}

/// The lines of a log that say what went wrong: the first ones, which the others follow from.
fn causes(log: &str) -> String {
    const SHOWN: usize = 4;
    let texts = log.lines().filter_map(|line| {
        let (_, text) = line.split_once("Error (")?.1.split_once("): ")?;
        // More open files for itself are criu's wish, not its need.
        let idle = text.ends_with(" FAILED.") || text.contains("RLIMIT_NOFILE for self");
        (!idle).then(|| text.trim())
    });
    texts.take(SHOWN).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_of_a_log_are_the_causes() {
        let log = "(00.1) cpu: x\n\
                   (00.1) Error (criu/util.c:3): rlimit: Can't setup RLIMIT_NOFILE for self: x\n\
                   (00.2) Error (criu/a.c:1): Can't lookup mount=7 for fd=0\n\
                   (00.3) Error (criu/b.c:2): Dump files failed with -1\n\
                   (00.4) Error (criu/cr-dump.c:9): Dumping FAILED.\n";
        assert_eq!(causes(log), "Can't lookup mount=7 for fd=0; Dump files failed with -1");
        assert_eq!(causes(""), "");
    }

    #[test]
    fn a_missing_criu_is_named() {
        let error = Criu::start(Path::new("/nonexistent/criu")).err().unwrap();
        assert!(format!("{error:#}").contains("/nonexistent/criu"), "{error:#}");
    }

    #[test]
    fn a_criu_that_only_ends_is_no_success() {
        let features = Criu::start(Path::new("/bin/true")).unwrap().features();
        assert!(features.unwrap_err().to_string().contains("does not work"));
    }
}
