//! `rmi` and `image prune`, with docker's rules on what may go.

use std::collections::HashSet;
use std::fmt;

use anyhow::{Result, bail};
use oci_spec::image::Digest;

use super::reference::Reference;
use super::store::{Image, Store};
use crate::container::{self, Container};
use crate::output;
use crate::paths::Paths;

/// There is no such image.
#[derive(Debug)]
pub struct NotFound(pub String);

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.parse::<Reference>();
        write!(f, "No such image: {}", name.map_or_else(|_| self.0.clone(), |n| n.familiar()))
    }
}

impl std::error::Error for NotFound {}

/// What became of a name, an image or a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A name.
    Untagged(String),
    /// An image's ID, or a layer's diffID.
    Deleted(Digest),
}

/// Takes a name or an image away.
///
/// # Errors
/// When there is none, or when a container or another name needs it, in docker's words.
pub fn remove(paths: &Paths, store: &Store, name: &str, force: bool) -> Result<Vec<Gone>> {
    let Some((image, by_name)) = store.find_named(name)? else {
        if let Ok(reference) = name.parse::<Reference>()
            && store.remove_damaged(&reference)?
        {
            return Ok(vec![Gone::Untagged(reference.familiar())]);
        }
        return Err(NotFound(name.into()).into());
    };
    let users: Vec<Container> = container::list(paths)?
        .into_iter()
        .filter(|container| container.record.image_id == image.id)
        .collect();
    let same: Vec<Image> =
        store.images()?.into_iter().filter(|other| other.id == image.id).collect();
    let names: Vec<&Reference> = same.iter().flat_map(|image| &image.names).collect();
    match by_name {
        Some(found) => remove_name(store, name, &found, &image, &names, &same, &users, force),
        None => {
            let repositories: HashSet<_> =
                names.iter().map(|name| (&name.registry, &name.repository)).collect();
            if repositories.len() > 1 && !force {
                bail!(
                    "conflict: unable to delete {} (must be forced) - image is referenced in \
                     multiple repositories",
                    image.short_id()
                );
            }
            check_unused(&image, &users, force)?;
            let mut gone = untagged(&same, &names);
            let removed = store.remove(&same)?;
            gone.extend(removed.deleted.into_iter().map(Gone::Deleted));
            Ok(gone)
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "all that was found out for one decision")]
fn remove_name(
    store: &Store,
    asked: &str,
    found: &Reference,
    image: &Image,
    names: &[&Reference],
    same: &[Image],
    users: &[Container],
    force: bool,
) -> Result<Vec<Gone>> {
    if names.len() > 1 {
        store.untag(std::slice::from_ref(found))?;
        let mut gone = vec![Gone::Untagged(found.familiar())];
        // By its digest it is known as long as some tag of the repository is left.
        let of_same = |name: &&&Reference| {
            name.registry == found.registry && name.repository == found.repository
        };
        if names.iter().filter(of_same).count() == 1 {
            gone.extend(digests(same, found));
        }
        return Ok(gone);
    }
    if let Some(user) = users.first().filter(|_| !force) {
        bail!(
            "conflict: unable to remove repository reference {asked:?} (must force) - container {} \
             is using its referenced image {}",
            user.short_id(),
            image.short_id()
        );
    }
    let mut gone = untagged(same, names);
    if check_unused(image, users, true).is_err() {
        // A running container keeps it, without a name.
        store.untag(std::slice::from_ref(found))?;
        return Ok(gone);
    }
    let removed = store.remove(same)?;
    gone.extend(removed.deleted.into_iter().map(Gone::Deleted));
    Ok(gone)
}

fn check_unused(image: &Image, users: &[Container], force: bool) -> Result<()> {
    let id = image.short_id();
    if let Some(user) = users.iter().find(|user| user.state().status.is_alive()) {
        bail!(
            "conflict: unable to delete {id} (cannot be forced) - image is being used by running \
             container {}",
            user.short_id()
        );
    }
    if let Some(user) = users.first().filter(|_| !force) {
        bail!(
            "conflict: unable to delete {id} (must be forced) - image is being used by stopped \
             container {}",
            user.short_id()
        );
    }
    Ok(())
}

fn untagged(same: &[Image], names: &[&Reference]) -> Vec<Gone> {
    let mut gone: Vec<Gone> = Vec::new();
    for name in names.iter().filter(|name| name.tag.is_some()) {
        gone.push(Gone::Untagged(name.familiar()));
    }
    for name in names {
        gone.extend(
            digests(same, name).into_iter().filter(|line| !gone.contains(line)).collect::<Vec<_>>(),
        );
    }
    gone
}

fn digests(same: &[Image], name: &Reference) -> Vec<Gone> {
    same.iter()
        .flat_map(|image| &image.digests)
        .filter(|other| other.registry == name.registry && other.repository == name.repository)
        .map(|other| Gone::Untagged(other.familiar()))
        .collect()
}

/// Removes images without names, or with `all` every image that no container is made of, if
/// `wanted` says so too. Also says how many bytes that gave back.
///
/// # Errors
/// When the store can't be read or written.
pub fn prune(
    paths: &Paths,
    store: &Store,
    all: bool,
    wanted: impl Fn(&Image) -> bool,
) -> Result<(Vec<Gone>, u64)> {
    let used: HashSet<Digest> =
        container::list(paths)?.into_iter().map(|container| container.record.image_id).collect();
    let mut gone = Vec::new();
    let mut images = store.images()?;
    images.retain(|image| {
        !used.contains(&image.id) && (all || image.names.is_empty()) && wanted(image)
    });
    for image in &images {
        let names: Vec<&Reference> = image.names.iter().collect();
        gone.extend(untagged(std::slice::from_ref(image), &names));
    }
    let removed = store.remove(&images)?;
    gone.extend(removed.deleted.into_iter().map(Gone::Deleted));
    Ok((gone, removed.bytes))
}

/// What `prune` prints of it, docker's `Total reclaimed space` included.
#[must_use]
pub fn report(gone: &[Gone], bytes: u64) -> String {
    let mut text = String::new();
    if !gone.is_empty() {
        text.push_str("Deleted Images:\n");
        for line in gone {
            text.push_str(&match line {
                Gone::Untagged(name) => format!("untagged: {name}\n"),
                Gone::Deleted(digest) => format!("deleted: {digest}\n"),
            });
        }
        text.push('\n');
    }
    text + &format!("Total reclaimed space: {}\n", output::long_size(bytes))
}
