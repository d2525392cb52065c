//! A connection to a D-Bus message bus that is as synchronous as the rest: no thread, no queue.
//!
//! The encoding is the crate zbus' (of which nothing else is compiled in); what is here is the
//! socket, the handshake and the pairing of calls with answers (D-Bus specification, "Message
//! Protocol" and "Authentication Protocol").

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{DynamicType, LE, Type, Variant, to_bytes};

/// How long an answer may take. systemd is not quick while it loads units anew.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest message that a bus passes on (specification, "Message Format").
const LONGEST: usize = 128 << 20;

// Message types and header fields (specification, "Message Format").
const CALL: u8 = 1;
const ANSWER: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const ANSWERS: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

/// An error that the other side has answered with.
#[derive(Debug)]
pub(super) struct Refused {
    /// `org.freedesktop.systemd1.NoSuchUnit` and the like.
    pub(super) name: String,
    text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.name)
    }
}

impl std::error::Error for Refused {}

/// Whom a call is for.
pub(super) struct Target<'a> {
    pub(super) service: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
}

const DRIVER: Target = Target {
    service: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// What the other side has sent: everything but the header.
pub(super) struct Body {
    signature: String,
    bytes: Vec<u8>,
    context: Context,
}

impl Body {
    /// The arguments, if they have the types of the tuple `T`.
    pub(super) fn read<T>(self) -> Result<T>
    where
        T: for<'d> Deserialize<'d> + Type,
    {
        let expected = T::SIGNATURE.to_string_no_parens();
        let got = &self.signature;
        ensure!(*got == expected, "D-Bus: got {got:?} where {expected:?} was expected");
        let data = Data::new(self.bytes, self.context);
        Ok(data.deserialize::<T>().context("D-Bus: decode a message")?.0)
    }
}

/// A received message.
struct Message {
    kind: u8,
    /// The number of the call that it answers.
    answers: u32,
    /// Of an error, or of a signal its member.
    name: String,
    body: Body,
}

/// An open connection.
pub(super) struct Bus {
    socket: UnixStream,
    /// Number of the last call.
    serial: u32,
    /// Signals that came while an answer was waited for, oldest first: member and arguments.
    signals: VecDeque<(String, Body)>,
}

impl Bus {
    /// Connects to the bus at `path`; one in the abstract namespace begins with `@`.
    pub(super) fn connect(path: &str) -> Result<Self> {
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(path),
        };
        let socket = address.and_then(|address| UnixStream::connect_addr(&address))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let mut bus = Self { socket, serial: 0, signals: VecDeque::new() };
        bus.authenticate().context("D-Bus: authenticate")?;
        bus.call(&DRIVER, "Hello", &())?;
        Ok(bus)
    }

    /// We name no user: the bus takes the one that the kernel tells it (SO_PEERCRED), which is the
    /// host's also for a process in a user namespace that knows itself by another number.
    fn authenticate(&mut self) -> Result<()> {
        self.socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.socket.read_exact(&mut byte)?;
            line.push(byte[0]);
            ensure!(line.len() < 4096, "the answer is too long");
            if !line.ends_with(b"\r\n") {
                continue;
            }
            match line.split(|byte| byte.is_ascii_whitespace()).next() {
                Some(b"OK") => break,
                Some(b"DATA") => line.clear(),
                _ => bail!("refused: {}", String::from_utf8_lossy(&line).trim_end()),
            }
        }
        Ok(self.socket.write_all(b"BEGIN\r\n")?)
    }

    /// Calls a method and waits for its answer. `arguments` is a tuple.
    ///
    /// # Errors
    /// [`Refused`] when the other side answers with an error.
    pub(super) fn call<T>(&mut self, target: &Target, member: &str, arguments: &T) -> Result<Body>
    where
        T: Serialize + DynamicType,
    {
        self.send(target, member, arguments).with_context(|| format!("D-Bus: send {member}"))?;
        let step = || format!("D-Bus: wait for the answer to {member}");
        loop {
            let message = self.receive().with_context(step)?;
            match message.kind {
                ANSWER if message.answers == self.serial => return Ok(message.body),
                ERROR if message.answers == self.serial => {
                    let text = match message.body.signature.starts_with('s') {
                        true => message.body.first_text()?,
                        false => String::new(),
                    };
                    return Err(anyhow!(Refused { name: message.name, text }));
                }
                SIGNAL => self.signals.push_back((message.name, message.body)),
                _ => {}
            }
        }
    }

    /// Asks for the signals that `rule` matches.
    pub(super) fn listen(&mut self, rule: &str) -> Result<()> {
        self.call(&DRIVER, "AddMatch", &(rule,)).map(drop)
    }

    /// The next signal of this name, also one that came before the last answer.
    pub(super) fn signal(&mut self, member: &str, deadline: Instant) -> Result<Body> {
        loop {
            while let Some((name, body)) = self.signals.pop_front() {
                if name == member {
                    return Ok(body);
                }
            }
            ensure!(Instant::now() < deadline, "D-Bus: {member} does not come");
            let message = self.receive().with_context(|| format!("D-Bus: wait for {member}"))?;
            if message.kind == SIGNAL {
                self.signals.push_back((message.name, message.body));
            }
        }
    }

    fn send<T>(&mut self, target: &Target, member: &str, arguments: &T) -> Result<()>
    where
        T: Serialize + DynamicType,
    {
        self.serial += 1;
        let context = Context::new(LE, 0);
        let body = to_bytes(context, arguments)?;
        let mut message = vec![b'l', CALL, 0, 1];
        for number in [u32::try_from(body.len())?, self.serial, 0] {
            message.extend(number.to_le_bytes());
        }
        let signature = arguments.signature().to_string_no_parens();
        append_field(&mut message, PATH, b'o', target.path);
        append_field(&mut message, INTERFACE, b's', target.interface);
        append_field(&mut message, MEMBER, b's', member);
        append_field(&mut message, DESTINATION, b's', target.service);
        append_field(&mut message, SIGNATURE, b'g', &signature);
        let length = (message.len() - 16) as u32;
        message[12..16].copy_from_slice(&length.to_le_bytes());
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend_from_slice(&body);
        Ok(self.socket.write_all(&message)?)
    }

    fn receive(&mut self) -> Result<Message> {
        // The fixed part of the header, whose last number is the length of its fields.
        let mut bytes = vec![0; 16];
        self.socket.read_exact(&mut bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => anyhow!("nothing came within {TIMEOUT:?}"),
            _ => error.into(),
        })?;
        let endian = match bytes[0] {
            b'l' => LE,
            b'B' => zbus::wire::BE,
            other => bail!("a message of byte order {other}"),
        };
        let number = |at: usize| endian.read_u32(&bytes[at..at + 4]) as usize;
        let body_length = number(4);
        let start = (16 + number(12)).next_multiple_of(8);
        ensure!(start + body_length <= LONGEST, "a message of {} bytes", start + body_length);
        bytes.resize(start + body_length, 0);
        self.socket.read_exact(&mut bytes[16..])?;
        let body = bytes.split_off(start);
        let context = Context::new(endian, 0);
        let data = Data::new(bytes, context);
        let ((_, kind, _, _, _, _, fields), _) = data.deserialize::<Header>()?;
        let mut message = Message {
            kind,
            answers: 0,
            name: String::new(),
            body: Body { signature: String::new(), bytes: body, context },
        };
        for (code, value) in &fields {
            match (*code, value) {
                (MEMBER | ERROR_NAME, Variant::Str(name)) => message.name = name.to_string(),
                (ANSWERS, Variant::U32(serial)) => message.answers = *serial,
                (SIGNATURE, Variant::Signature(signature)) => {
                    message.body.signature = signature.to_string_no_parens();
                }
                _ => {}
            }
        }
        Ok(message)
    }
}

/// Appends a field to a header. By hand, because the crate has no way to say "two strings" other
/// than "a structure of two strings", which a body is not.
fn append_field(header: &mut Vec<u8>, code: u8, kind: u8, value: &str) {
    header.resize(header.len().next_multiple_of(8), 0);
    header.extend([code, 1, kind, 0]);
    match kind {
        b'g' => header.push(value.len() as u8),
        _ => header.extend((value.len() as u32).to_le_bytes()),
    }
    header.extend(value.as_bytes());
    header.push(0);
}

impl Body {
    /// The text that an error begins with, whatever else it has.
    fn first_text(self) -> Result<String> {
        let data = Data::new(self.bytes, self.context);
        Ok(data.deserialize::<String>().context("D-Bus: decode an error")?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What connecting comes to with a bus that says these things, one after each thing it is told.
    fn against(name: &str, says: &'static [&'static [u8]]) -> Result<()> {
        let path = std::env::temp_dir().join(format!("ultari-bus-{}-{name}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let bus = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for said in says {
                let _ = socket.read(&mut [0; 4096]).unwrap();
                socket.write_all(said).unwrap();
            }
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let outcome = Bus::connect(path.to_str().unwrap()).map(drop);
        bus.join().unwrap();
        std::fs::remove_file(path).unwrap();
        outcome
    }

    /// The answer "1" to the first call, without its body's bytes: a header with REPLY_SERIAL.
    const ANSWERED: &[u8] =
        &[b'l', ANSWER, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, ANSWERS, 1, b'u', 0, 1, 0, 0, 0];

    #[test]
    fn a_bus_that_lets_us_in_is_connected_to() {
        against("fine", &[b"DATA\r\nOK 0123\r\n", ANSWERED]).unwrap();
    }

    #[test]
    fn whatever_else_a_bus_says_is_an_error() {
        const OK: &[u8] = b"OK 0123\r\n";
        let cases: [(&str, &'static [&'static [u8]], &str); 7] = [
            ("rejected", &[b"REJECTED EXTERNAL\r\n"], "REJECTED EXTERNAL"),
            ("silent", &[b""], "authenticate"),
            ("order", &[OK, &[b'x'; 16]], "byte order"),
            (
                "long",
                &[OK, &[b'l', 2, 0, 1, 255, 255, 255, 255, 1, 0, 0, 0, 255, 255, 255, 255]],
                "bytes",
            ),
            ("short", &[OK, &[b'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 5]], "Hello"),
            (
                "junk",
                &[OK, &[b'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 5, 9, 9, 9, 9, 9, 9, 9]],
                "Hello",
            ),
            ("gone", &[OK], "Hello"),
        ];
        for (name, says, reason) in cases {
            let error = format!("{:#}", against(name, says).unwrap_err());
            assert!(error.contains(reason), "{name}: {error}");
        }
    }
}
