//! `uctr cp`
//!
//! Both sides are looked up from a root that can't be left: `/` on the host, and the container's
//! own, in which a link may lead anywhere else. What is read goes through a pipe as a tar archive
//! and is written as layers are.

use std::ffi::OsStr;
use std::io::{IsTerminal, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{getegid, geteuid};
use ultari::rootfs::root::{Root, file_type, is_folder};

use crate::container::files::Files;
use crate::container::{self, Container};
use crate::image::pack::Packer;
use crate::image::unpack;
use crate::output;
use crate::paths::Paths;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Keep owners and groups also on this side
    #[arg(short, long)]
    archive: bool,
    /// If the source is a link, copy what it leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Don't say what was done
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path here, or - for a tar archive on stdin
    source: String,
    /// CONTAINER:PATH, a path here, or - for a tar archive on stdout
    destination: String,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let (from, to) = (Place::parse(&args.source), Place::parse(&args.destination));
    match (&from, &to) {
        (Place::Container(..), Place::Container(..)) => {
            bail!("copying between containers is not supported")
        }
        (Place::Container(..), _) | (_, Place::Container(..)) => {}
        _ => bail!("must specify at least one container source"),
    }
    let (from, to) = (Side::open(paths, from, false)?, Side::open(paths, to, true)?);
    let copied = match (&from, &to) {
        (Side::Stdio, Side::Tree(to)) => {
            let folder = to.existing_folder()?;
            unpack::copy(Root::new(folder), std::io::stdin().lock())?;
            return Ok(0);
        }
        (Side::Tree(from), Side::Stdio) => {
            ensure!(
                !std::io::stdout().is_terminal(),
                "a tar archive is not for a terminal: redirect the output"
            );
            let source = from.source(args.follow_link)?;
            let mut packer = Packer::new(std::io::stdout().lock());
            packer.add(source.node, Path::new(&source.name))?;
            packer.finish()?;
            return Ok(0);
        }
        (Side::Tree(from), Side::Tree(to)) => {
            let owner = (!args.archive && to.container.is_none())
                .then(|| (geteuid().as_raw(), getegid().as_raw()));
            copy(from, to, args.follow_link, owner)?
        }
        (Side::Stdio, Side::Stdio) => bail!("must specify at least one container source"),
    };
    if !args.quiet {
        eprintln!("Successfully copied {} to {}", output::size(copied), args.destination);
    }
    Ok(0)
}

/// What the command line says of one side.
enum Place {
    Stdio,
    Local(String),
    Container(String, String),
}

impl Place {
    /// `CONTAINER:PATH`; a path with a colon in it is written `./a:b` or `/a:b`.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stdio;
        }
        match text.split_once(':') {
            Some((container, path)) if !container.is_empty() && !text.starts_with(['/', '.']) => {
                Self::Container(container.into(), path.into())
            }
            _ => Self::Local(text.into()),
        }
    }
}

enum Side {
    Stdio,
    Tree(Tree),
}

/// A path in a tree of files.
struct Tree {
    root: Root,
    /// As it was given.
    path: String,
    /// The container's name, if it is in one.
    container: Option<String>,
    /// Keeps the container as it is.
    _files: Option<Files>,
}

/// What is to be copied.
struct Source {
    node: OwnedFd,
    /// Its last name.
    name: String,
    /// Only what is in the folder, not itself.
    only_content: bool,
}

impl Side {
    fn open(paths: &Paths, place: Place, written: bool) -> Result<Self> {
        let tree = match place {
            Place::Stdio => return Ok(Self::Stdio),
            Place::Local(path) => {
                ensure!(!path.is_empty(), "a path is missing");
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = open("/", flags, Mode::empty()).context("open /")?;
                Tree { root: Root::new(root), path, container: None, _files: None }
            }
            Place::Container(name, path) => {
                let container = container::find(paths, &name)?;
                ensure!(!path.is_empty(), "a path in the container is missing: {name}:PATH");
                if written {
                    check_writable(&container, Path::new("/").join(&path).as_path())?;
                }
                let files = Files::open(&container)?;
                Tree { root: files.root()?, path, container: Some(name), _files: Some(files) }
            }
        };
        Ok(Self::Tree(tree))
    }
}

fn check_writable(container: &Container, path: &Path) -> Result<()> {
    let in_mount = container.record.mounts.iter().any(|mount| path.starts_with(&mount.destination));
    ensure!(
        in_mount || !container.record.host_config.readonly_rootfs,
        "container rootfs is marked read-only"
    );
    Ok(())
}

impl Tree {
    /// From the root; a path in a container has nothing else that it could be relative to.
    fn absolute(&self) -> Result<PathBuf> {
        let above = match self.container {
            Some(_) => PathBuf::from("/"),
            None => std::env::current_dir().context("find out the current folder")?,
        };
        Ok(above.join(&self.path))
    }

    fn must_be_folder(&self) -> bool {
        self.path.ends_with('/') || self.path.ends_with("/.") || self.path == "."
    }

    fn missing(&self) -> String {
        match &self.container {
            Some(name) => format!("Could not find the file {} in container {name}", self.path),
            None => format!("{}: no such file or directory", self.path),
        }
    }

    /// Opens what is to be read, and a link as such unless it is to be followed.
    fn source(&self, follow: bool) -> Result<Source> {
        let path = self.absolute()?;
        let folder = self.must_be_folder();
        let name = path.file_name().map(OsStr::to_owned);
        let opened = match (&name, path.parent()) {
            (Some(name), Some(parent)) if !folder && !follow => {
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                self.root
                    .open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)
                    .and_then(|parent| openat(&parent, name.as_os_str(), flags, Mode::empty()))
            }
            _ => self.root.open(&path, OFlag::O_PATH).map(OwnedFd::from),
        };
        let node = match opened {
            Err(Errno::ENOENT | Errno::ENOTDIR) => bail!(self.missing()),
            other => other.with_context(|| format!("open {}", self.path))?,
        };
        let is_folder = is_folder(&fstat(&node)?);
        ensure!(is_folder || !folder, "{}: not a directory", self.path);
        let ends_with_dot = self.path.ends_with("/.") || self.path == ".";
        Ok(Source {
            node,
            only_content: is_folder && (ends_with_dot || name.is_none()),
            name: name.map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned()),
        })
    }

    /// The folder that it has to be.
    fn existing_folder(&self) -> Result<OwnedFd> {
        match self.root.open(&self.absolute()?, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => bail!(self.missing()),
            Err(Errno::ENOTDIR) => bail!("destination {:?} must be a directory", self.path),
            other => other.map(OwnedFd::from).with_context(|| format!("open {}", self.path)),
        }
    }

    /// The path that something gets here, by docker's rules, and whether that is a folder that is
    /// there and keeps what it is.
    fn target(&self, source: &Source) -> Result<(PathBuf, bool)> {
        let path = self.absolute()?;
        let from_folder = is_folder(&fstat(&source.node)?);
        let found = match self.root.open(&path, OFlag::O_PATH) {
            Ok(found) => Some(is_folder(&fstat(&found)?)),
            Err(Errno::ENOENT) => None,
            Err(Errno::ENOTDIR) => bail!("{}: not a directory", self.path),
            Err(errno) => return Err(errno).with_context(|| format!("open {}", self.path)),
        };
        match (found, from_folder) {
            (Some(true), true) if source.only_content => Ok((self.resolve(&path)?, true)),
            (Some(true), _) => Ok((path.join(&source.name), false)),
            (Some(false), true) => bail!("cannot copy directory: {} is a file", self.path),
            (Some(false), false) if self.must_be_folder() => {
                bail!("{}: not a directory", self.path)
            }
            (None, false) if self.must_be_folder() => bail!("no such directory: {}", self.path),
            _ => {
                let path = self.resolve(&path)?;
                let parent = path.parent().unwrap_or(Path::new("/"));
                match self.root.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                    Ok(_) => Ok((path, false)),
                    Err(Errno::ENOENT | Errno::ENOTDIR) => {
                        bail!("no such directory: {}", parent.display())
                    }
                    Err(errno) => Err(errno).with_context(|| format!("open {}", parent.display())),
                }
            }
        }
    }

    /// Where a link leads, if the last name is one; what exchanges it meanwhile gains nothing, as
    /// what is returned is looked up from the root again, and its last name is not followed.
    fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { break };
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let found = self
                .root
                .open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)
                .and_then(|parent| openat(&parent, name, flags, Mode::empty()));
            let Ok(found) = found else { return Ok(path) };
            if file_type(&fstat(&found)?) != nix::libc::S_IFLNK {
                return Ok(path);
            }
            path = parent.join(readlinkat(&found, "").context("read a link")?);
        }
        bail!("{}: too many symbolic links", self.path)
    }
}

/// Copies, and says how many bytes that were. Whatever is written gets `owner`, if one is given.
fn copy(from: &Tree, to: &Tree, follow: bool, owner: Option<(u32, u32)>) -> Result<u64> {
    let source = from.source(follow)?;
    let (target, content) = to.target(&source)?;
    // Names in an archive have no `..`; what a link before it means was looked up already.
    let target: PathBuf = target.components().collect();
    let name = target.strip_prefix("/").unwrap_or(&target).to_owned();
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let root = Root::new(std::os::fd::AsFd::as_fd(&to.root).try_clone_to_owned()?);
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || pack(source.node, &name, content, owner, writer));
        let unpacked = unpack::copy(root, reader);
        let packed = packing.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
        match (packed, unpacked) {
            (Ok(bytes), Ok(())) => Ok(bytes),
            (Err(error), Err(_)) if !is_broken_pipe(&error) => Err(error),
            (_, Err(error)) | (Err(error), _) => Err(error),
        }
    })
}

fn pack(
    node: OwnedFd,
    name: &Path,
    content: bool,
    owner: Option<(u32, u32)>,
    writer: PipeWriter,
) -> Result<u64> {
    let mut counted = Counted { writer, bytes: 0 };
    let mut packer = Packer::new(&mut counted);
    packer.set_owner(owner);
    match content {
        true => packer.add_content(&node.into(), name)?,
        false => packer.add(node, name)?,
    }
    packer.finish()?;
    Ok(counted.bytes)
}

/// Nobody reads on: there is another error, which says why.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

struct Counted {
    writer: PipeWriter,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.writer.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s71_places_are_told_from_each_other() {
        assert!(matches!(Place::parse("-"), Place::Stdio));
        for local in ["/a:b", "./a:b", "../a:b", "a", ":a", "."] {
            assert!(matches!(Place::parse(local), Place::Local(path) if path == local), "{local}");
        }
        assert!(matches!(Place::parse("web:/a:b"),
            Place::Container(name, path) if name == "web" && path == "/a:b"));
    }
}
