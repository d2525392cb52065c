//! Who a program runs as: names looked up in the image's own files.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use ultari::rootfs::root::{Root, file_type};

/// As much of /etc/passwd and /etc/group as is read, in bytes.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// Ids in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// The root filesystem at `path`, in which no link leads out.
///
/// # Errors
/// When it can't be opened.
pub fn open_root(path: &Path) -> Result<Root> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder: OwnedFd = open(path, flags, Mode::empty())
        .with_context(|| format!("open the root filesystem {}", path.display()))?;
    Ok(Root::new(folder))
}

/// Looks up `user[:group]` (names or numbers; root when empty) and the groups of `--group-add`.
///
/// # Errors
/// In docker's words, when a name isn't there.
pub fn find(root: &Root, text: &str, extra_groups: &[String]) -> Result<User> {
    let passwd = read(root, "/etc/passwd");
    let group = read(root, "/etc/group");
    resolve(text, extra_groups, &passwd, &group)
}

/// What isn't there, is no file, or a huge one says nothing.
fn read(root: &Root, path: &str) -> String {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let Ok(file) = root.open(Path::new(path), flags) else { return String::new() };
    let regular = |stat| file_type(&stat) == libc::S_IFREG;
    if !nix::sys::stat::fstat(&file).is_ok_and(regular) {
        return String::new();
    }
    let mut text = Vec::new();
    let _ = std::fs::File::from(file).take(MAX_SIZE).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The highest means "unchanged" to the kernel, and stays root.
    text.parse().ok().filter(|number| digits && *number < i32::MAX as u32)
}

/// The fields of the first line that `matches`.
fn entry(file: &str, matches: impl Fn(&[&str]) -> bool) -> Option<Vec<&str>> {
    file.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| matches(fields))
}

fn resolve(text: &str, extra: &[String], passwd: &str, group: &str) -> Result<User> {
    let (name, group_name) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let by_name = entry(passwd, |fields| fields.len() > 3 && fields[0] == name);
    let known = by_name.or_else(|| {
        number(name)?;
        entry(passwd, |fields| fields.len() > 3 && fields[2] == name)
    });
    let uid = match known.as_ref().and_then(|fields| number(fields[2])).or_else(|| number(name)) {
        Some(uid) => uid,
        None if name.bytes().all(|byte| byte.is_ascii_digit()) => {
            bail!("uids and gids must be in range 0-2147483647")
        }
        None => bail!("unable to find user {name}: no matching entries in passwd file"),
    };
    let mut user = User { uid, gid: 0, groups: Vec::new() };
    match group_name {
        Some(group_name) => user.gid = group_id(group_name, group)?,
        None => {
            user.gid = known.as_ref().and_then(|fields| number(fields[3])).unwrap_or(0);
            if let Some(fields) = &known {
                user.groups = memberships(fields[0], group);
            }
        }
    }
    for name in extra {
        user.groups.push(group_id(name, group)?);
    }
    user.groups.sort_unstable();
    user.groups.dedup();
    ensure!(user.groups.len() <= 65536, "--group-add: more than 65536 groups");
    Ok(user)
}

fn group_id(name: &str, group: &str) -> Result<u32> {
    entry(group, |fields| fields.len() > 2 && fields[0] == name)
        .and_then(|fields| number(fields[2]))
        .or_else(|| number(name))
        .with_context(|| format!("unable to find group {name}: no matching entries in group file"))
}

fn memberships(user: &str, group: &str) -> Vec<u32> {
    let member = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let listed = fields.get(3)?.split(',').any(|name| name == user);
        listed.then(|| number(fields[2]))?
    };
    group.lines().filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n\
                          7:x:70:70::/:/bin/sh\nbad\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\nwheel:x:10:root,ann\nvideo:x:44:ann\nbad\n";

    fn user(text: &str) -> Result<User> {
        resolve(text, &[], PASSWD, GROUP)
    }

    #[test]
    fn users_are_names_or_numbers() {
        let ann = User { uid: 1000, gid: 1001, groups: vec![10, 44] };
        assert_eq!(user("ann").unwrap(), ann);
        assert_eq!(user("1000").unwrap(), ann);
        assert_eq!(user("").unwrap(), User { uid: 0, gid: 0, groups: vec![10] });
        assert_eq!(user("7").unwrap().uid, 70, "a name of digits is a name first");
        assert_eq!(user("1234").unwrap(), User { uid: 1234, gid: 0, groups: vec![] });
        assert_eq!(user("ann:wheel").unwrap(), User { uid: 1000, gid: 10, groups: vec![] });
        assert_eq!(user("5:6").unwrap(), User { uid: 5, gid: 6, groups: vec![] });
    }

    #[test]
    fn unknown_names_are_never_root() {
        for (text, word) in [
            ("bob", "unable to find user bob"),
            ("ann:staff", "unable to find group staff"),
            ("4294967295", "must be in range"),
            ("0:4294967295", "unable to find group"),
            ("-1", "unable to find user -1"),
        ] {
            let error = user(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn groups_can_be_added() {
        let user = resolve("ann", &["5".into(), "wheel".into()], PASSWD, GROUP).unwrap();
        assert_eq!(user.groups, [5, 10, 44]);
        resolve("ann", &["nope".into()], PASSWD, GROUP).unwrap_err();
    }
}
