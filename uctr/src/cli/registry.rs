//! Commands that talk to registries.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use nix::sys::termios::{self, LocalFlags, SetArg};

use crate::image::reference::{self, DEFAULT_REGISTRY, Reference};
use crate::image::registry::{
    Client, ConfigFile, Credentials, Login, Output, Platform, Pull, Settings, clean, push,
};
use crate::image::store::Store;
use crate::paths::Paths;

const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Image(ImageCommand),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out from a registry
    Logout {
        /// docker.io if none is given
        #[arg(value_name = "SERVER")]
        server: Option<String>,
    },
    /// Search the catalog of a registry for images
    Search(SearchArgs),
}

/// Those of them that are also `uctr image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Download an image from a registry
    Pull(PullArgs),
    /// Upload an image to a registry
    Push(PushArgs),
}

#[derive(Debug, Args)]
pub struct Insecure {
    /// A registry (HOST[:PORT], or a network as 10.0.0.0/8) that is talked to without TLS, or
    /// without a certificate that is known here
    #[arg(long = "insecure-registry", value_name = "REGISTRY")]
    registries: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Set platform if the registry has images for several
    #[arg(long, value_name = "OS[/ARCH[/VARIANT]]")]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    insecure: Insecure,
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
}

#[derive(Debug, Args)]
pub struct PushArgs {
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    insecure: Insecure,
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Username
    #[arg(short, long)]
    username: Option<String>,
    /// Password
    #[arg(short, long)]
    password: Option<String>,
    /// Take the password from stdin
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    #[command(flatten)]
    insecure: Insecure,
    /// docker.io if none is given
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// Max number of search results
    #[arg(long, default_value_t = 25)]
    limit: usize,
    #[command(flatten)]
    insecure: Insecure,
    /// The registry, and a part of the name that is looked for
    #[arg(value_name = "REGISTRY[/TERM]")]
    term: String,
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Image(command) => return run_group(paths, command),
        Command::Login(args) => login(&args)?,
        Command::Logout { server } => logout(server.as_deref())?,
        Command::Search(args) => search(&args)?,
    }
    Ok(0)
}

pub fn run_group(paths: &Paths, command: ImageCommand) -> Result<u8> {
    match command {
        ImageCommand::Pull(args) => pull(paths, &args)?,
        ImageCommand::Push(args) => push_images(paths, &args)?,
    }
    Ok(0)
}

fn pull(paths: &Paths, args: &PullArgs) -> Result<()> {
    let name: Reference = args.name.parse()?;
    let is_bare = Reference::is_bare(&args.name);
    let store = Store::open(paths)?;
    let platform = Platform(args.platform.clone());
    let output = if args.quiet { Output::Nowhere } else { Output::Stdout };
    let pull = Pull::new(paths, &store, &platform, &args.insecure.registries, output)?;
    if args.all_tags {
        ensure!(is_bare, "tag can't be used with --all-tags/-a");
        pull.all_tags(&name)?;
        let whole = format!("{}/{}", name.registry, name.repository);
        return say(&whole);
    }
    if is_bare && !args.quiet {
        say("Using default tag: latest")?;
    }
    pull.image(&name)?;
    say(&name.to_string())
}

fn push_images(paths: &Paths, args: &PushArgs) -> Result<()> {
    let name: Reference = args.name.parse()?;
    let is_bare = Reference::is_bare(&args.name);
    ensure!(name.digest.is_none(), "cannot push a digest reference");
    let store = Store::open(paths)?;
    let output = if args.quiet { Output::Nowhere } else { Output::Stdout };
    let mut names = vec![name.clone()];
    if args.all_tags {
        ensure!(is_bare, "tag can't be used with --all-tags/-a");
        names = tags_here(&store, &name)?;
        if names.is_empty() {
            bail!("An image does not exist locally with the tag: {}", name.familiar_repository());
        }
    } else if is_bare && !args.quiet {
        say("Using default tag: latest")?;
    }
    for name in &names {
        push(&store, name, &args.insecure.registries, output)?;
        if args.quiet {
            say(&name.to_string())?;
        }
    }
    Ok(())
}

/// All names of a repository's images that are tags.
fn tags_here(store: &Store, name: &Reference) -> Result<Vec<Reference>> {
    let mut names = Vec::new();
    for image in store.images()? {
        names.extend(image.names.into_iter().filter(|other| {
            other.tag.is_some()
                && (&other.registry, &other.repository) == (&name.registry, &name.repository)
        }));
    }
    names.sort_by(|one, other| one.tag.cmp(&other.tag));
    for name in &mut names {
        name.digest = None;
    }
    Ok(names)
}

/// The registry's name of what users give to `login`: also a URL.
fn server(text: Option<&str>) -> Result<String> {
    let Some(text) = text else { return Ok(DEFAULT_REGISTRY.to_owned()) };
    let host = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    ensure!(reference::is_registry(host), "{text:?}: is no registry: HOST[:PORT] is needed");
    Ok(if host == "index.docker.io" { DEFAULT_REGISTRY } else { host }.to_owned())
}

fn login(args: &LoginArgs) -> Result<()> {
    let server = server(args.server.as_deref())?;
    let mut config = ConfigFile::load()?;
    if args.password.is_some() {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    let (user, password) = ask(args, &server, &config)?;
    ensure!(!user.contains(':'), "a user name can't contain a colon");
    let mut credentials = Credentials::Basic { user: user.clone(), password };
    let settings = Settings::load(&args.insecure.registries)?;
    if let Login::Identity(token) = Client::login(settings, &server, credentials.clone())? {
        credentials = Credentials::Identity(token);
    }
    config.store(&server, &credentials, &user)?;
    if config.helper(&server).is_none() {
        eprintln!(
            "WARNING! Your credentials are stored unencrypted in '{}'.\n\
             Configure a credential helper to remove this warning.",
            config.path().display()
        );
    }
    say("Login Succeeded")
}

/// User and password: from flags, from stdin, or asked for.
fn ask(args: &LoginArgs, server: &str, config: &ConfigFile) -> Result<(String, String)> {
    if args.password_stdin {
        let user = args.username.clone();
        let user = user.context("Must provide --username with --password-stdin")?;
        let mut text = String::new();
        io::stdin().take(MAX_PASSWORD).read_to_string(&mut text).context("read the password")?;
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        ensure!(!password.is_empty(), "the password on stdin is empty");
        return Ok((user, password.to_owned()));
    }
    if let (Some(user), Some(password)) = (&args.username, &args.password) {
        return Ok((user.clone(), password.clone()));
    }
    if args.username.is_none()
        && args.password.is_none()
        && let Some(Credentials::Basic { user, password }) = config.get(server)?
    {
        eprintln!("Authenticating with existing credentials...");
        return Ok((user, password));
    }
    ensure!(
        io::stdin().is_terminal(),
        "Cannot perform an interactive login from a non TTY device; use --username and \
         --password-stdin"
    );
    let user = match &args.username {
        Some(user) => user.clone(),
        None => prompt("Username: ", false)?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None => prompt("Password: ", true)?,
    };
    ensure!(!user.is_empty() && !password.is_empty(), "username and password are required");
    Ok((user, password))
}

/// One line from the terminal.
fn prompt(question: &str, is_secret: bool) -> Result<String> {
    let mut terminal =
        File::options().read(true).write(true).open("/dev/tty").context("open /dev/tty")?;
    write!(terminal, "{question}").context("write to the terminal")?;
    let before = termios::tcgetattr(terminal.as_fd()).context("tcgetattr")?;
    if is_secret {
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(terminal.as_fd(), SetArg::TCSAFLUSH, &silent).context("tcsetattr")?;
    }
    let mut line = String::new();
    let read = io::BufReader::new(&terminal).read_line(&mut line);
    if is_secret {
        termios::tcsetattr(terminal.as_fd(), SetArg::TCSANOW, &before).context("tcsetattr")?;
        writeln!(terminal).context("write to the terminal")?;
    }
    read.context("read from the terminal")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn logout(text: Option<&str>) -> Result<()> {
    let server = server(text)?;
    if ConfigFile::load()?.erase(&server)? {
        say(&format!("Removing login credentials for {server}"))
    } else {
        say(&format!("Not logged in to {server}"))
    }
}

fn search(args: &SearchArgs) -> Result<()> {
    let (registry, term) = args.term.split_once('/').unwrap_or((&args.term, ""));
    let is_named = registry.contains(['.', ':']) || registry == "localhost";
    if !is_named || !reference::is_registry(registry) || registry == DEFAULT_REGISTRY {
        bail!(
            "search {:?}: {DEFAULT_REGISTRY} has no catalog; name a registry that has one, as in \
             uctr search localhost:5000/{term}",
            args.term
        );
    }
    let settings = Settings::load(&args.insecure.registries)?;
    let scopes = vec!["registry:catalog:*".to_owned()];
    let client = Client::connect(settings, registry, scopes)?;
    let found = client
        .repositories(term, args.limit)
        .with_context(|| format!("ask {registry} for its catalog, which not every registry has"))?;
    say("NAME")?;
    for name in found {
        say(&clean(&format!("{registry}/{name}")))?;
    }
    Ok(())
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("write to stdout")
}
