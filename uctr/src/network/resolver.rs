//! A network's resolver: answers its members' questions for each other's names, and hands all others
//! on to the host's resolvers, or to those of the container's `--dns`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record as Answer, RecordType};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::helper::{self, Watch};
use super::members::{self, Record};
use crate::paths::Paths;

/// The hidden subcommand.
pub const COMMAND: &str = "name-server";

/// What the resolver is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// Whose members it answers.
    pub network_id: String,
    /// Where it listens: the network's gateway.
    pub address: Ipv4Addr,
}

const PORT: u16 = 53;
/// How long another resolver has for an answer, and a client for a question.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions that are under way elsewhere.
const MOST: usize = 256;
const STACK: usize = 128 * 1024;

struct Resolver {
    paths: Paths,
    job: Job,
    /// Questions and connections with a thread of their own.
    busy: AtomicUsize,
}

/// The process: serves until the network has no members.
///
/// # Errors
/// When it can't begin; later ones only concern single questions.
pub fn main(paths: &Paths) -> Result<()> {
    let job: Job = helper::input()?;
    let ready =
        helper::into_background(paths).and_then(|()| Ok((listen(job.address)?, Watch::new()?)));
    let ((udp, tcp), watch) = match ready {
        Ok(ready) => {
            helper::answer(&Ok(()))?;
            ready
        }
        Err(error) => return helper::answer::<()>(&Err(error)),
    };
    let resolver = Arc::new(Resolver { paths: paths.clone(), job, busy: AtomicUsize::new(0) });
    loop {
        let mut fds =
            [watch.fd(), udp.as_fd(), tcp.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("poll")?,
        };
        let [watched, asked, called] =
            fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if asked {
            resolver.datagram(&udp);
        }
        if called {
            resolver.connection(&tcp);
        }
        if watched {
            watch.drain();
            if resolver.is_unneeded(&watch)? {
                return Ok(());
            }
        }
    }
}

fn listen(address: Ipv4Addr) -> Result<(Arc<UdpSocket>, TcpListener)> {
    let open = || -> std::io::Result<_> {
        Ok((UdpSocket::bind((address, PORT))?, TcpListener::bind((address, PORT))?))
    };
    // An earlier resolver of the network may still be ending.
    let mut tries = 20;
    let sockets = loop {
        match open() {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries > 0 => tries -= 1,
            other => break other,
        }
        thread::sleep(Duration::from_millis(50));
    };
    let (udp, tcp) = sockets.with_context(|| {
        format!("the network's resolver can't listen on {address}:{PORT}: is there a name server of the host's on all addresses?")
    })?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((Arc::new(udp), tcp))
}

impl Resolver {
    /// Whether the network has no members; what is left of dead ones is removed then.
    fn is_unneeded(&self, watch: &Watch) -> Result<bool> {
        let on_it = |paths: &Paths| -> Result<Vec<Record>> {
            let mut members = members::list(paths)?;
            members.retain(|member| member.address(&self.job.network_id).is_some());
            Ok(members)
        };
        let alive = on_it(&self.paths)?.iter().any(|member| !watch.all_gone(&member.links()));
        if alive {
            return Ok(false);
        }
        super::sweep(&self.paths)?;
        // One may have come before the lock was taken.
        Ok(on_it(&self.paths)?.is_empty())
    }

    fn background(self: &Arc<Self>, work: impl FnOnce(&Self) + Send + 'static) {
        let this = self.clone();
        if this.busy.fetch_add(1, Ordering::Relaxed) < MOST {
            let thread = thread::Builder::new().stack_size(STACK);
            let run = move || {
                work(&this);
                this.busy.fetch_sub(1, Ordering::Relaxed);
            };
            if thread.spawn(run).is_ok() {
                return;
            }
        }
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { return };
        let question = buffer[..length].to_vec();
        match self.answer(&question, client.ip()) {
            Reply::Here(bytes) => drop(socket.send_to(&bytes, client)),
            Reply::Elsewhere(servers) => {
                let socket = socket.clone();
                self.background(move |_| {
                    let answer = forward(&question, &servers, ask_udp);
                    drop(socket.send_to(&answer, client));
                });
            }
            Reply::Nothing => {}
        }
    }

    fn connection(self: &Arc<Self>, socket: &TcpListener) {
        let Ok((client, address)) = socket.accept() else { return };
        self.background(move |resolver| drop(resolver.talk(client, address.ip())));
    }

    fn talk(&self, mut client: TcpStream, address: IpAddr) -> std::io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        loop {
            let question = receive(&mut client)?;
            let answer = match self.answer(&question, address) {
                Reply::Here(bytes) => bytes,
                Reply::Elsewhere(servers) => forward(&question, &servers, ask_tcp),
                Reply::Nothing => return Ok(()),
            };
            send(&mut client, &answer)?;
        }
    }

    fn answer(&self, question: &[u8], client: IpAddr) -> Reply {
        let Ok(message) = Message::from_vec(question) else { return Reply::Nothing };
        let members = members::list(&self.paths).unwrap_or_default();
        let asks = |member: &&Record| {
            member
                .address(&self.job.network_id)
                .is_some_and(|address| IpAddr::V4(address) == client)
        };
        let Some(member) = members.iter().find(asks) else {
            // Nobody else is to use it.
            return refuse(&message, ResponseCode::Refused);
        };
        if let Some(reply) = known(&message, member, &members) {
            return reply;
        }
        let servers = match member.dns.is_empty() {
            true => host_servers(),
            false => member.dns.clone(),
        };
        let servers: Vec<_> =
            servers.into_iter().filter(|server| *server != self.job.address).collect();
        match servers.is_empty() {
            true => refuse(&message, ResponseCode::NXDomain),
            false => Reply::Elsewhere(servers),
        }
    }
}

enum Reply {
    Here(Vec<u8>),
    /// To be asked there.
    Elsewhere(Vec<IpAddr>),
    /// It was no question.
    Nothing,
}

fn response(question: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(question.metadata.id, OpCode::Query);
    response.metadata = Metadata::response_from_request(&question.metadata);
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(question.queries.iter().cloned());
    response
}

fn emit(message: &Message) -> Reply {
    message.to_vec().map_or(Reply::Nothing, Reply::Here)
}

fn refuse(question: &Message, code: ResponseCode) -> Reply {
    emit(&response(question, code))
}

/// The answer, if the question is about a member of one of the networks that `asking` is on.
fn known(question: &Message, asking: &Record, members: &[Record]) -> Option<Reply> {
    let [query] = &question.queries[..] else {
        return Some(refuse(question, ResponseCode::FormErr));
    };
    if question.metadata.op_code != OpCode::Query || query.query_class != DNSClass::IN {
        return Some(refuse(question, ResponseCode::NotImp));
    }
    let visible = |network: &str| {
        asking.endpoints.iter().any(|own| own.network_id == network && own.resolver.is_some())
    };
    let text = query.name.to_ascii().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    let reverse = match query.query_type {
        RecordType::PTR => query.name.parse_arpa_name().ok().map(|net| net.addr()),
        _ => None,
    };
    let mut answers = Vec::new();
    let mut found = false;
    for (member, endpoint) in members.iter().flat_map(|m| m.endpoints.iter().map(move |e| (m, e))) {
        let Some(address) =
            member.address(&endpoint.network_id).filter(|_| visible(&endpoint.network_id))
        else {
            continue;
        };
        let data = if reverse == Some(IpAddr::V4(address)) {
            let name = Name::from_ascii(format!("{}.{}.", member.name, endpoint.network));
            name.ok().map(|name| RData::PTR(PTR(name)))
        } else if members::names(member, endpoint).any(|name| name == text) {
            found = true;
            (query.query_type == RecordType::A).then_some(RData::A(A(address)))
        } else {
            None
        };
        // It may have another address at the next question.
        answers.extend(data.map(|data| Answer::from_rdata(query.name.clone(), 0, data)));
    }
    if answers.is_empty() && !found {
        return None;
    }
    // Of several with one name each gets its turn.
    let turn = usize::from(question.metadata.id) % answers.len().max(1);
    answers.rotate_left(turn);
    let mut response = response(question, ResponseCode::NoError);
    response.metadata.authoritative = true;
    response.add_answers(answers);
    Some(emit(&response))
}

/// The resolvers that the host uses, read anew for each question.
fn host_servers() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(server).collect()
}

/// The answer of the first server that has one.
fn forward(
    question: &[u8],
    servers: &[IpAddr],
    ask: fn(&[u8], SocketAddr) -> std::io::Result<Vec<u8>>,
) -> Vec<u8> {
    for server in servers {
        if let Ok(answer) = ask(question, SocketAddr::new(*server, PORT)) {
            return answer;
        }
    }
    let failed =
        Message::from_vec(question).map(|message| refuse(&message, ResponseCode::ServFail));
    match failed {
        Ok(Reply::Here(bytes)) => bytes,
        _ => Vec::new(),
    }
}

fn ask_udp(question: &[u8], server: SocketAddr) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    // The port is random, and only the server's answers arrive.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket.recv(&mut buffer)?;
        if length >= 2 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

fn ask_tcp(question: &[u8], server: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    send(&mut stream, question)?;
    receive(&mut stream)
}

/// A message with its length before it, as over TCP (RFC 1035, 4.2.2).
fn receive(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn send(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}
