//! The flags of `run` and `create`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgAction, Args};

use super::values::{environment, labels, pairs, restart_policy, ulimit, wish};
use crate::container::attach::DETACH_KEYS;
use crate::container::config::{devices, files};
use crate::container::make::Request;
use crate::container::parse::{parse_cpus, parse_signal, parse_size};
use crate::container::record::{Config, Empty, HostConfig, LogConfig};
use crate::container::update::check_limits;
use crate::image::registry::PullPolicy;
use crate::network::{self, Wish};

/// What `run` and `create` share.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct Create {
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_name = "STREAM")]
    pub attach: Vec<String>,
    /// Keep stdin open even if not attached
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    pub tty: bool,
    /// A name for the container
    #[arg(long)]
    name: Option<String>,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Replace the image's ENTRYPOINT
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Name or number of the user, and of the group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Further groups
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Host name
    #[arg(short, long)]
    hostname: Option<String>,
    /// NIS domain name
    #[arg(long)]
    domainname: Option<String>,
    /// Labels
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// no, always, unless-stopped or on-failure[:MAX]
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: String,
    /// Signal that asks the program to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds until it is killed
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Run a reaper of orphans as first process
    #[arg(long)]
    init: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    security: Security,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    net: Net,
    /// Write the container's ID to a file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing, value_name = "WHEN")]
    pub pull: PullPolicy,
    /// os/architecture[/variant] of the image
    #[arg(long)]
    pub platform: Option<String>,
    /// json-file, local or none: where the output is kept
    #[arg(long, default_value = "json-file", value_name = "DRIVER")]
    log_driver: String,
    /// max-size=BYTES, max-file=NUMBER
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Keys that leave the container, as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    pub detach_keys: String,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,
    /// The image's name or ID
    pub image: String,
    /// What to run instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// How much it may use.
#[derive(Debug, Args)]
pub struct Limits {
    /// Number of processors, as .5
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Share of the processors' time, relative to others
    #[arg(short = 'c', long, value_name = "SHARES")]
    cpu_shares: Option<u64>,
    /// Period of the quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Time in each period in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Processors to use, as 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory limit, as 100m
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Limit of memory and swap, -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Number of processes, -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
}

impl Limits {
    /// Puts them into docker's structure.
    pub fn put(&self, host: &mut HostConfig) -> Result<()> {
        let size = |text: &Option<String>, flag: &str| match text {
            Some(text) => parse_size(text)
                .with_context(|| format!("invalid argument {text:?} for \"{flag}\" flag")),
            None => Ok(0),
        };
        if let Some(cpus) = &self.cpus {
            host.nano_cpus = parse_cpus(cpus)?;
        }
        host.cpu_shares = self.cpu_shares.unwrap_or_default();
        host.cpu_period = self.cpu_period.unwrap_or_default();
        host.cpu_quota = self.cpu_quota.unwrap_or_default();
        host.cpuset_cpus = self.cpuset_cpus.clone().unwrap_or_default();
        host.cpuset_mems = self.cpuset_mems.clone().unwrap_or_default();
        host.memory = size(&self.memory, "-m, --memory")?;
        ensure!(host.memory >= 0, "invalid size for --memory");
        host.memory_swap = size(&self.memory_swap, "--memory-swap")?;
        host.memory_reservation = size(&self.memory_reservation, "--memory-reservation")?;
        host.pids_limit = self.pids_limit;
        Ok(())
    }
}

/// What it may do.
#[derive(Debug, Args)]
struct Security {
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// All capabilities and devices, and nothing masked
    #[arg(long)]
    privileged: bool,
    /// seccomp=FILE, seccomp=unconfined, no-new-privileges, apparmor=PROFILE, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// HOST[:CONTAINER[:rwm]]
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// NAME=VALUE
    #[arg(long, value_name = "SETTING")]
    sysctl: Vec<String>,
    /// Rank for the kernel when memory runs out, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, default_value_t = 0,
        value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: i32,
    /// host, private or container:NAME
    #[arg(long, value_name = "MODE", default_value = "")]
    pid: String,
    /// host, private or container:NAME
    #[arg(long, value_name = "MODE", default_value = "")]
    ipc: String,
    /// host or private
    #[arg(long, value_name = "MODE", default_value = "")]
    uts: String,
    /// host or private
    #[arg(long, value_name = "MODE", default_value = "")]
    cgroupns: String,
    /// Cgroup above that of the container
    #[arg(long, value_name = "PATH", default_value = "")]
    cgroup_parent: String,
}

/// What is mounted.
#[derive(Debug, Args)]
struct Places {
    /// [SOURCE:]DESTINATION[:OPTIONS]
    #[arg(short, long, value_name = "VOLUME")]
    volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// PATH[:OPTIONS]
    #[arg(long, value_name = "MOUNT")]
    tmpfs: Vec<String>,
    /// The volumes of another container
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<String>,
    /// The container can't write its root filesystem
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", default_value = "64m")]
    shm_size: String,
}

/// How it is reached.
#[derive(Debug, Args)]
struct Net {
    /// bridge, host, none, container:NAME, or a network
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// A further name on its network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Address on its network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// Address on its network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Of its interface
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// [IP:][HOST:]CONTAINER[/PROTOCOL], also ranges
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish all exposed ports
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// PORT[-PORT][/PROTOCOL]
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// NAME:ADDRESS for /etc/hosts
    #[arg(long, value_name = "HOST")]
    add_host: Vec<String>,
    /// Resolver
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<std::net::IpAddr>,
    /// Domain in which names are searched
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// NAME[:ALIAS] of another container
    #[arg(long, value_name = "CONTAINER")]
    link: Vec<String>,
}

impl Create {
    /// What the flags say.
    pub fn request(&self, detached: bool) -> Result<Request> {
        let attach = self.attached(detached)?;
        let config = Config {
            hostname: self.hostname.clone().unwrap_or_default(),
            domainname: self.domainname.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            attach_stdin: attach[0],
            attach_stdout: attach[1],
            attach_stderr: attach[2],
            exposed_ports: self.exposed()?,
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive && attach[0],
            env: environment(&self.env, &self.env_file)?,
            working_dir: self.working_dir()?,
            labels: labels(&self.label, &self.label_file)?,
            stop_signal: self.stop_signal.clone(),
            stop_timeout: self.stop_timeout,
            ..Config::default()
        };
        if let Some(signal) = &self.stop_signal {
            parse_signal(signal)?;
        }
        let mut ports = Vec::new();
        for flag in &self.net.publish {
            ports.extend(network::parse_port(flag)?);
        }
        Ok(Request {
            name: self.name.clone(),
            image: self.image.clone(),
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            config,
            host_config: self.host_config()?,
            wishes: self.wishes()?,
            ports,
            tmpfs: self.places.tmpfs.clone(),
        })
    }

    /// Which of the streams the caller is attached to.
    pub fn attached(&self, detached: bool) -> Result<[bool; 3]> {
        if detached {
            ensure!(
                self.attach.is_empty(),
                "conflicting options: cannot specify both --attach and --detach"
            );
            return Ok([false; 3]);
        }
        if self.attach.is_empty() {
            return Ok([self.interactive, true, true]);
        }
        let mut streams = [false; 3];
        for name in &self.attach {
            match name.to_ascii_lowercase().as_str() {
                "stdin" => streams[0] = true,
                "stdout" => streams[1] = true,
                "stderr" => streams[2] = true,
                _ => bail!("valid streams are STDIN, STDOUT and STDERR: {name}"),
            }
        }
        Ok(streams)
    }

    fn working_dir(&self) -> Result<String> {
        let folder = self.workdir.clone().unwrap_or_default();
        ensure!(
            folder.is_empty() || folder.starts_with('/'),
            "the working directory '{folder}' is invalid, it needs to be an absolute path"
        );
        Ok(folder)
    }

    fn exposed(&self) -> Result<BTreeMap<String, Empty>> {
        let mut ports = BTreeMap::new();
        for flag in &self.net.expose {
            let (range, protocol) = flag.split_once('/').unwrap_or((flag, "tcp"));
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                bail!("invalid range format for --expose: {flag}")
            };
            ensure!(
                first <= last && matches!(protocol, "tcp" | "udp" | "sctp"),
                "invalid range format for --expose: {flag}"
            );
            ports.extend((first..=last).map(|port| (format!("{port}/{protocol}"), Empty {})));
        }
        Ok(ports)
    }

    fn host_config(&self) -> Result<HostConfig> {
        let (security, places, net) = (&self.security, &self.places, &self.net);
        for entry in &net.add_host {
            files::split_host(entry)?;
        }
        let restart_policy = restart_policy(&self.restart)?;
        ensure!(
            !self.rm || restart_policy.name == "no",
            "conflicting options: cannot specify both --restart and --rm"
        );
        let tmpfs = places.tmpfs.iter().map(|flag| flag.split_once(':').unwrap_or((flag, "")));
        let mut host = HostConfig {
            binds: places.volume.clone(),
            mounts: places.mount.clone(),
            tmpfs: tmpfs.map(|(path, options)| (path.into(), options.into())).collect(),
            volumes_from: places.volumes_from.clone(),
            container_id_file: self
                .cidfile
                .as_ref()
                .map(|p| p.display().to_string())
                .unwrap_or_default(),
            log_config: self.log_config()?,
            network_mode: self
                .networks()?
                .first()
                .map(|wish| wish.network.clone())
                .unwrap_or_default(),
            restart_policy,
            auto_remove: self.rm,
            cap_add: security.cap_add.clone(),
            cap_drop: security.cap_drop.clone(),
            cgroupns_mode: security.cgroupns.clone(),
            dns: net.dns.iter().map(ToString::to_string).collect(),
            dns_options: net.dns_option.clone(),
            dns_search: net.dns_search.clone(),
            extra_hosts: net.add_host.clone(),
            group_add: self.group_add.clone(),
            ipc_mode: security.ipc.clone(),
            links: net.link.clone(),
            oom_score_adj: security.oom_score_adj,
            pid_mode: security.pid.clone(),
            privileged: security.privileged,
            publish_all_ports: net.publish_all,
            readonly_rootfs: places.read_only,
            security_opt: security.security_opt.clone(),
            uts_mode: security.uts.clone(),
            shm_size: parse_size(&places.shm_size).context("--shm-size")?,
            sysctls: pairs("--sysctl", &security.sysctl)?,
            runtime: "ultari".into(),
            cgroup_parent: security.cgroup_parent.clone(),
            devices: security.device.iter().map(|d| devices::parse(d)).collect::<Result<_>>()?,
            ulimits: security.ulimit.iter().map(|u| ulimit(u)).collect::<Result<_>>()?,
            init: self.init.then_some(true),
            ..HostConfig::default()
        };
        ensure!(host.shm_size > 0, "SHM size can not be less than 0");
        self.limits.put(&mut host)?;
        check_limits(&mut host)?;
        Ok(host)
    }

    fn log_config(&self) -> Result<LogConfig> {
        ensure!(
            matches!(self.log_driver.as_str(), "json-file" | "local" | "none"),
            "--log-driver {}: not supported; json-file (a file, whatever its format) and none are",
            self.log_driver
        );
        let config = pairs("--log-opt", &self.log_opt)?;
        for (name, value) in &config {
            let fine = match name.as_str() {
                "max-size" => parse_size(value).is_ok(),
                "max-file" => value.parse::<u32>().is_ok_and(|files| files > 0),
                _ => bail!("unknown log opt '{name}' for {} log driver", self.log_driver),
            };
            ensure!(fine, "invalid value for log opt '{name}': {value}");
        }
        Ok(LogConfig { kind: self.log_driver.clone(), config })
    }

    fn networks(&self) -> Result<Vec<Wish>> {
        self.net.network.iter().map(|flag| wish(flag)).collect()
    }

    fn wishes(&self) -> Result<Vec<Wish>> {
        let mut wishes = self.networks()?;
        let net = &self.net;
        let own = Wish {
            network: "bridge".into(),
            ip: net.ip.map(Into::into).into_iter().chain(net.ip6.map(Into::into)).collect(),
            mac: net.mac_address.clone(),
            aliases: net.network_alias.clone(),
        };
        let any = !own.ip.is_empty() || own.mac.is_some() || !own.aliases.is_empty();
        match wishes.first_mut() {
            Some(first) if any => {
                first.ip.extend(own.ip);
                first.aliases.extend(own.aliases);
                first.mac = own.mac.or(first.mac.take());
            }
            None if any => wishes.push(own),
            _ => {}
        }
        Ok(wishes)
    }
}
