//! The command line: runc's, flag for flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// A low-level OCI container runtime.
#[derive(Debug, Parser)]
#[command(name = "ultari", disable_version_flag = true, arg_required_else_help = true)]
// Engines repeat flags; as with runc the last one counts.
#[command(args_override_self = true)]
pub struct Cli {
    /// Show more of what happens
    #[arg(long, global = true)]
    pub debug: bool,
    /// File to write log lines to, beside standard error
    #[arg(long, value_name = "FILE", global = true)]
    pub log: Option<PathBuf>,
    /// How lines of the log file look
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Folder of the containers' records [default: /run/ultari, or $XDG_RUNTIME_DIR/ultari]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// Have systemd make the cgroup: linux.cgroupsPath is SLICE:PREFIX:NAME
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Say where the time of run, create, exec and restore went: as text, or to a file that ends in
    /// .svg, .json (Chrome trace) or anything else; also ULTARI_TIMINGS=1 or =FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "-", global = true)]
    pub timings: Option<PathBuf>,
    /// Accepted for compatibility: true, false or auto
    #[arg(long, value_name = "VALUE", hide = true)]
    pub rootless: Option<String>,
    /// Where criu is, unless it is on the PATH
    #[arg(long, value_name = "PATH", hide = true, global = true)]
    pub criu: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'v', long)]
    pub version: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Reads the program's arguments.
///
/// # Errors
/// Those of clap: also what `--help` shows.
pub fn parse(args: &[OsString]) -> clap::error::Result<Cli> {
    // The common flags stand first, as a rule; to have them in each command takes as long as all
    // else.
    let mut quick = Cli::command().mut_args(|arg| arg.global(false));
    let matches = quick.try_get_matches_from_mut(args);
    // What is needed later finds room at the heap's beginning.
    drop(quick);
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(cli),
        Err(_) => Cli::try_parse_from(args),
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// key=value lines
    Text,
    /// One JSON object a line
    Json,
}

/// `--format` of list and ps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns
    Table,
    /// JSON
    Json,
}

/// The commands. Only the flags of the one that is called are built: that of all is half of a short
/// command's time.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Create a container from a bundle; `start` runs its program
    Create(Create),
    /// Run the program of a created container
    Start {
        /// Name of the container
        container_id: String,
    },
    /// Create a container, run its program, wait for it and delete the container
    Run(Run),
    /// Run a further program in a container
    Exec(Box<Exec>),
    /// Print the state of a container as JSON
    State {
        /// Name of the container
        container_id: String,
    },
    /// Send a signal to a container's first process
    Kill {
        /// Name of the container
        container_id: String,
        /// Name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// To all processes of the container
        #[arg(short, long)]
        all: bool,
    },
    /// Delete a stopped container
    Delete {
        /// Name of the container
        container_id: String,
        /// Kill it first if it runs; an unknown one is no error
        #[arg(short, long)]
        force: bool,
    },
    /// List the containers
    List {
        /// table or json
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: OutputFormat,
        /// Names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show the processes of a container
    Ps {
        /// table or json
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: OutputFormat,
        /// Name of the container; all that follows it are options of ps(1) [default: -ef]
        #[arg(
            value_names = ["CONTAINER_ID", "PS_OPTIONS"],
            num_args = 1..,
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        container_id_and_options: Vec<String>,
    },
    /// Change limits of a container
    Update(Box<Update>),
    /// Print figures of a container now and then, and when it runs out of memory
    Events {
        /// Name of the container
        container_id: String,
        /// Time from one to the next, such as 500ms or 1m30s
        #[arg(long, value_name = "DURATION", default_value = "5s")]
        interval: String,
        /// Print the figures once
        #[arg(long)]
        stats: bool,
    },
    /// Freeze all processes of a container
    Pause {
        /// Name of the container
        container_id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// Name of the container
        container_id: String,
    },
    /// Save a running container to files
    Checkpoint(Box<Checkpoint>),
    /// Make a container from such files, which goes on where it was
    Restore(Box<Restore>),
    /// Write a config.json to start from
    Spec {
        /// Folder to write it to [default: the current one]
        #[arg(short, long, value_name = "DIR")]
        bundle: Option<PathBuf>,
        /// For a user without privileges
        #[arg(long)]
        rootless: bool,
    },
    /// Print what this runtime supports, as JSON
    Features,
    /// Say what of a bundle this host can and can't honour, without making anything
    Check {
        /// Folder of the bundle
        #[arg(default_value = ".")]
        bundle: PathBuf,
        /// table or json
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: OutputFormat,
    },
}

/// Flags of create and run.
#[derive(Args, Debug)]
pub struct Create {
    /// Name of the container: letters, digits and _ + - .
    pub container_id: String,
    /// Folder of the bundle [default: the current one]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Socket that takes the master side of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Socket that takes a pidfd of the container's first process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move the root filesystem instead of pivot_root, which can't work on an initramfs
    #[arg(long)]
    pub no_pivot: bool,
    /// Stay in the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N descriptors from 3 on to the program, beside those of $LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// Flags of run.
#[derive(Args, Debug)]
pub struct Run {
    /// Those of create
    #[command(flatten)]
    pub create: Create,
    /// Do not wait for the program
    #[arg(short, long)]
    pub detach: bool,
    /// Do not delete the container after it has ended
    #[arg(long)]
    pub keep: bool,
    /// Do not become the parent of orphans of the container
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Flags of update. Sizes are in bytes, or have a unit of 1024 bytes, its square and so on: k, m,
/// g, t, p. Zero leaves a limit as it is.
#[derive(Args, Debug)]
#[command(allow_negative_numbers = true)]
pub struct Update {
    /// Name of the container
    pub container_id: String,
    /// File with the object linux.resources of a config.json, - for standard input; all other
    /// flags but the schemas are ignored then
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Share of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Period in which the quota counts, in microseconds
    #[arg(long, value_name = "NUMBER")]
    pub cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds; -1 for no limit
    #[arg(long, value_name = "NUMBER")]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "NUMBER")]
    pub cpu_burst: Option<u64>,
    /// Period of realtime CPU time, in microseconds
    #[arg(long, value_name = "NUMBER")]
    pub cpu_rt_period: Option<u64>,
    /// Realtime CPU time in each period, in microseconds
    #[arg(long, value_name = "NUMBER")]
    pub cpu_rt_runtime: Option<i64>,
    /// Share of CPU time, 2 to 262144
    #[arg(long, value_name = "NUMBER")]
    pub cpu_share: Option<u64>,
    /// CPUs to use, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// 1 to have only CPU time that nobody else wants, 0 not to
    #[arg(long, value_name = "NUMBER")]
    pub cpu_idle: Option<i64>,
    /// Memory; -1 for no limit
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Memory that is left to the container when it gets scarce
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "SIZE")]
    pub memory_swap: Option<String>,
    /// Ignored: the kernel has given it up
    #[arg(long, value_name = "SIZE", hide = true)]
    pub kernel_memory: Option<String>,
    /// Ignored: the kernel has given it up
    #[arg(long, value_name = "SIZE", hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<i64>,
    /// Share of the L3 cache (resctrl)
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Share of memory bandwidth (resctrl)
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
}

/// Flags of both checkpoint and restore.
#[derive(Args, Debug)]
pub struct Images {
    /// Folder of the checkpoint
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Folder for criu's log [default: that of the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Open TCP connections too
    #[arg(long)]
    pub tcp_established: bool,
    /// Unix sockets too whose other end is outside of the container
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Also with the terminal of the caller
    #[arg(long)]
    pub shell_job: bool,
    /// File locks too
    #[arg(long)]
    pub file_locks: bool,
    /// Remove from older images what newer ones have
    #[arg(long)]
    pub auto_dedup: bool,
    /// Memory stays where it is until the restored container uses it
    #[arg(long)]
    pub lazy_pages: bool,
    /// What criu does about cgroups
    #[arg(long, value_name = "MODE", default_value = "soft")]
    pub manage_cgroups_mode: ManageCgroups,
    /// Namespace to leave empty: network
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<EmptyNamespace>,
}

/// `--manage-cgroups-mode`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ManageCgroups {
    /// Properties of cgroups that had to be made
    Soft,
    /// All properties
    Full,
    /// All properties of cgroups that may not be there
    Strict,
    /// Nothing
    Ignore,
}

/// `--empty-ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EmptyNamespace {
    /// The network namespace
    Network,
}

/// Flags of checkpoint.
#[derive(Args, Debug)]
pub struct Checkpoint {
    /// Name of the container
    pub container_id: String,
    /// Those of both
    #[command(flatten)]
    pub images: Images,
    /// An earlier checkpoint to build on, relative to the folder of this one
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Let the container go on
    #[arg(long)]
    pub leave_running: bool,
    /// Leave out TCP connections that are being made
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Give removed files that are open a name again
    #[arg(long)]
    pub link_remap: bool,
    /// Descriptor to which a NUL byte is written as soon as lazy pages can be had
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    pub status_fd: Option<i32>,
    /// Where the pages are to go; with --lazy-pages where they are to be had
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// Save only memory, and let the container go on
    #[arg(long)]
    pub pre_dump: bool,
}

/// Flags of restore.
#[derive(Args, Debug)]
pub struct Restore {
    /// Name of the container: letters, digits and _ + - .
    pub container_id: String,
    /// Those of both
    #[command(flatten)]
    pub images: Images,
    /// Folder of the bundle [default: the current one]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Socket that takes the master side of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Do not wait for the container's end
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not become the parent of orphans of the container
    #[arg(long)]
    pub no_subreaper: bool,
    /// `-no-subreaper`, as containerd's shim writes it: a flag n with a value
    #[arg(short = 'n', hide = true, value_parser = ["o-subreaper"])]
    pub single_dash: Option<String>,
    /// Accepted for compatibility: criu knows only pivot_root
    #[arg(long)]
    pub no_pivot: bool,
    /// AppArmor or SELinux profile to have instead of the saved one
    #[arg(long, value_name = "TYPE:NAME")]
    pub lsm_profile: Option<String>,
    /// SELinux context of mounts to have instead of the saved one
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
}

/// Flags of exec.
#[derive(Args, Debug)]
pub struct Exec {
    /// Name of the container
    pub container_id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// File with the process object to run
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User to run as
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Capability to add
    #[arg(short, long, value_name = "NAME")]
    pub cap: Vec<String>,
    /// Supplementary group to add
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// SELinux context
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Do not wait for it
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Socket that takes the master side of its terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Cgroup below the container's to run it in, of these controllers on cgroup v1
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    pub cgroup: Vec<String>,
    /// Socket that takes a pidfd of it
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Pass N descriptors from 3 on to the program, beside those of $LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Also in a paused container, where it waits until that goes on
    #[arg(long)]
    pub ignore_paused: bool,
}
