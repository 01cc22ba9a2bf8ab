//! The system calls of a script.

use std::net::SocketAddrV4;

use crate::calls::{Answer, Call};
use crate::flow::{Phase, stream_bytes};
use crate::options::OptionValue;
use crate::player::{PORT, Player, REMOTE};
use crate::script::{CallSpec, EventTime, Expr};
use crate::socket::Outcome;
use crate::symbols::{Errno, symbol};

type Said<T> = Result<T, String>;

/// The value of an expression.
fn number(expr: &Expr) -> Said<i64> {
    match expr {
        Expr::Int(value) => Ok(*value),
        Expr::Word(name) => symbol(name).ok_or_else(|| format!("unknown name: {name}")),
        Expr::Or(left, right) => Ok(number(left)? | number(right)?),
        Expr::List(items) if items.len() == 1 => number(&items[0]),
        other => Err(format!("not a number: {other:?}")),
    }
}

fn arg(spec: &CallSpec, index: usize) -> Said<&Expr> {
    spec.args.get(index).ok_or_else(|| format!("{} needs more arguments", spec.name))
}

fn number_at(spec: &CallSpec, index: usize) -> Said<i64> {
    number(arg(spec, index)?)
}

/// A field of a record.
fn field<'a>(expr: &'a Expr, name: &str) -> Option<&'a Expr> {
    match expr {
        Expr::Record(fields) => {
            fields.iter().find(|(known, _)| known == name).map(|(_, value)| value)
        }
        _ => None,
    }
}

/// Bytes that `[{..., 10}, {..., 20}]` has room for.
fn vector_len(expr: &Expr) -> Said<usize> {
    let Expr::List(parts) = expr else { return Err("not a list of buffers".into()) };
    let mut len = 0;
    for part in parts {
        let Expr::Group(pair) = part else { return Err("not a buffer".into()) };
        len += usize::try_from(number(pair.get(1).ok_or("a buffer without a length")?)?)
            .map_err(|_| "a negative length")?;
    }
    Ok(len)
}

impl Player {
    fn descriptor(&self, spec: &CallSpec, index: usize) -> Said<i32> {
        let number = number_at(spec, index)?;
        // What was never opened is not open in the stack either.
        Ok(self.descriptors.get(&number).copied().unwrap_or(-1))
    }

    /// How many bytes a call sends or has room for, `None` for a buffer at address 0; and its flags.
    fn buffer(&self, spec: &CallSpec) -> Said<(Option<usize>, i64)> {
        let len = |index| -> Said<Option<usize>> {
            let count =
                usize::try_from(number_at(spec, index)?).map_err(|_| "a negative length")?;
            let null = matches!(arg(spec, index - 1)?, Expr::Word(word) if word == "NULL");
            Ok((!null).then_some(count))
        };
        Ok(match spec.name.as_str() {
            "read" | "write" => (len(2)?, 0),
            "readv" | "writev" => (Some(vector_len(arg(spec, 1)?)?), 0),
            "recvmsg" | "sendmsg" => {
                let vector = field(arg(spec, 1)?, "msg_iov").ok_or("a message without buffers")?;
                (Some(vector_len(vector)?), number_at(spec, 2)?)
            }
            _ => (len(2)?, number_at(spec, 3)?),
        })
    }

    /// Makes a call.
    pub(crate) fn call(&mut self, spec: &CallSpec, kind: EventTime) -> Said<()> {
        if let Some((fd, call, timeout)) = self.waiting_call(spec)? {
            if let Call::Connect(_) = call
                && let Some(flow) = self.flow_of(fd)
                && flow.phase == Phase::New
            {
                flow.phase = Phase::Connecting;
            }
            let mut pending = self.sockets.begin(fd, call, timeout);
            return match self.sockets.attempt(&mut pending) {
                Some(outcome) => self.ended(spec, outcome),
                None => self.block(pending, spec, kind),
            };
        }
        let outcome = self.immediate_call(spec)?;
        self.ended(spec, outcome.map(|value| Answer { value, ..Answer::default() }))
    }

    /// The calls that may wait.
    fn waiting_call(&mut self, spec: &CallSpec) -> Said<Option<(i32, Call, i64)>> {
        let call = match spec.name.as_str() {
            "accept" => Call::Accept,
            "connect" => Call::Connect(SocketAddrV4::new(REMOTE, PORT)),
            "read" | "readv" | "recv" | "recvfrom" | "recvmsg" => {
                let (room, flags) = self.buffer(spec)?;
                Call::Receive { room, flags }
            }
            "write" | "writev" | "send" | "sendto" | "sendmsg" => {
                let (len, flags) = self.buffer(spec)?;
                let fd = self.descriptor(spec, 0)?;
                let at = self.flow_of(fd).map_or(0, |flow| flow.written);
                Call::Send { data: len.map(|len| stream_bytes(at, len)), flags }
            }
            "poll" => {
                let Expr::List(entries) = arg(spec, 0)? else { return Err("not a list".into()) };
                let mut asked = Vec::new();
                for entry in entries {
                    let script = number(field(entry, "fd").ok_or("an entry without fd")?)?;
                    let events = number(field(entry, "events").ok_or("an entry without events")?)?;
                    let fd = self.descriptors.get(&script).copied().unwrap_or(-1);
                    asked.push((fd, events));
                }
                return Ok(Some((-1, Call::Poll(asked), number_at(spec, 2)?)));
            }
            "epoll_wait" => {
                let max = usize::try_from(number_at(spec, 2)?).map_err(|_| "a negative count")?;
                return Ok(Some((
                    self.descriptor(spec, 0)?,
                    Call::EpollWait(max),
                    number_at(spec, 3)?,
                )));
            }
            _ => return Ok(None),
        };
        Ok(Some((self.descriptor(spec, 0)?, call, 0)))
    }

    /// The calls that never wait.
    fn immediate_call(&mut self, spec: &CallSpec) -> Said<Outcome<i64>> {
        if spec.name == "socket" {
            let domain = match arg(spec, 0)? {
                Expr::Ellipsis => 2,
                other => number(other)?,
            };
            let (kind, protocol) = (number_at(spec, 1)?, number_at(spec, 2)?);
            return Ok(self.sockets.socket(domain, kind, protocol).map(i64::from));
        }
        if spec.name == "epoll_create" {
            return Ok(Ok(i64::from(self.sockets.epoll_create())));
        }
        let fd = self.descriptor(spec, 0)?;
        let local = self.local();
        Ok(match spec.name.as_str() {
            "bind" => self.sockets.bind(fd, local).map(|()| 0),
            "listen" => {
                let outcome = self.sockets.listen(fd, number_at(spec, 1)?);
                if outcome.is_ok()
                    && let Some(flow) = self.flow_of(fd)
                {
                    flow.phase = Phase::Listening;
                }
                outcome.map(|()| 0)
            }
            "shutdown" => self.sockets.shutdown(fd, number_at(spec, 1)?).map(|()| 0),
            "close" => self.sockets.close(fd).map(|()| 0),
            "fcntl" => {
                let argument = if spec.args.len() > 2 { number_at(spec, 2)? } else { 0 };
                self.sockets.fcntl(fd, number_at(spec, 1)?, argument)
            }
            "ioctl" => {
                let outcome = self.sockets.ioctl(fd, number_at(spec, 1)?);
                if let Ok(value) = outcome {
                    let expected = number_at(spec, 2)?;
                    if value != expected {
                        return Err(format!("ioctl says {value}, not {expected}"));
                    }
                }
                outcome.map(|_| 0)
            }
            "getsockopt" => self.get_option(spec, fd)?,
            "setsockopt" => {
                let (level, name) = (number_at(spec, 1)?, number_at(spec, 2)?);
                let value = match arg(spec, 3)? {
                    Expr::Text(text) => OptionValue::Bytes(text.clone().into_bytes()),
                    record @ Expr::Record(_) => OptionValue::Pair(
                        number(field(record, "onoff").ok_or("linger without onoff")?)?,
                        number(field(record, "linger").ok_or("linger without its time")?)?,
                    ),
                    other => OptionValue::Int(number(other)?),
                };
                self.sockets.set_option(fd, level, name, &value).map(|()| 0)
            }
            "epoll_ctl" => {
                let (operation, watched) = (number_at(spec, 1)?, self.descriptor(spec, 2)?);
                let (events, data) = match spec.args.get(3) {
                    Some(event) => epoll_event(event)?,
                    None => (0, 0),
                };
                self.sockets.epoll_control(fd, operation, watched, events, data).map(|()| 0)
            }
            other => return Err(format!("unknown system call: {other}")),
        })
    }

    fn get_option(&mut self, spec: &CallSpec, fd: i32) -> Said<Outcome<i64>> {
        let outcome = self.sockets.option(fd, number_at(spec, 1)?, number_at(spec, 2)?);
        let value = match outcome {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        };
        let same = match (&value, arg(spec, 3)?) {
            (OptionValue::Int(value), expected) => *value == number(expected)?,
            (OptionValue::Bytes(bytes), Expr::Text(text)) => bytes.starts_with(text.as_bytes()),
            (OptionValue::Pair(on, seconds), record) => {
                field(record, "onoff").map(number).transpose()? == Some(*on)
                    && field(record, "linger").map(number).transpose()? == Some(*seconds)
            }
            _ => return Err("an option of another form".into()),
        };
        if same { Ok(Ok(0)) } else { Err(format!("the option is {value:?}")) }
    }

    /// Compares a result with what is expected.
    pub(crate) fn check_result(
        &self,
        spec: &CallSpec,
        outcome: &Outcome<Answer>,
        told: &str,
    ) -> Said<()> {
        if spec.result == Expr::Ellipsis {
            return Ok(());
        }
        let expected = number(&spec.result)?;
        let opens = matches!(spec.name.as_str(), "socket" | "accept" | "epoll_create");
        let fits = match outcome {
            Ok(_) if opens => expected >= 0,
            Ok(answer) => answer.value == expected,
            Err(error) => {
                expected == -1 && spec.errno.as_ref().is_none_or(|name| same_error(*error, name))
            }
        };
        if fits {
            return Ok(());
        }
        let errno = spec.errno.as_deref().unwrap_or_default();
        Err(format!("{} returned {told}, not {expected} {errno}", spec.name))
    }

    /// Takes note of what a call changed, and compares what it gave beside its result.
    pub(crate) fn after_call(&mut self, spec: &CallSpec, answer: &Answer) -> Said<()> {
        match spec.name.as_str() {
            "socket" => {
                let live = answer.value as i32;
                self.descriptors.insert(number(&spec.result)?, live);
                let local = self.local();
                self.new_flow(live, Phase::New, local);
            }
            "epoll_create" => {
                self.descriptors.insert(number(&spec.result)?, answer.value as i32);
            }
            "accept" => {
                self.descriptors.insert(number(&spec.result)?, answer.value as i32);
                let live = answer.value as i32;
                if let Some(flow) = self.flow_to_accept() {
                    flow.descriptor = Some(live);
                }
            }
            "write" | "writev" | "send" | "sendto" | "sendmsg" => {
                let fd = self.descriptor(spec, 0)?;
                if let Some(flow) = self.flow_of(fd) {
                    flow.written = flow.written.wrapping_add(answer.value as u32);
                }
            }
            "read" | "readv" | "recv" | "recvfrom" | "recvmsg" => self.after_read(spec, answer)?,
            "poll" => {
                let Expr::List(entries) = arg(spec, 0)? else { return Ok(()) };
                for (entry, (ready, _)) in entries.iter().zip(&answer.ready) {
                    let Some(expected) = field(entry, "revents") else { continue };
                    if number(expected)? != *ready {
                        return Err(format!("revents is {ready:#x}"));
                    }
                }
            }
            "epoll_wait" => {
                let expected = match arg(spec, 1)? {
                    Expr::List(events) => events.clone(),
                    Expr::Ellipsis => return Ok(()),
                    one => vec![one.clone()],
                };
                for (event, (ready, data)) in expected.iter().zip(&answer.ready) {
                    let wanted = epoll_event(event)?;
                    if wanted != (*ready, *data) {
                        return Err(format!("events are {ready:#x} with {data}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn after_read(&mut self, spec: &CallSpec, answer: &Answer) -> Said<()> {
        let fd = self.descriptor(spec, 0)?;
        let (_, flags) = self.buffer(spec)?;
        if let Some(flow) = self.flow_of(fd) {
            if !answer.data.is_empty() && answer.data != stream_bytes(flow.read, answer.data.len())
            {
                return Err("what was read is not what was sent".into());
            }
            if flags & crate::symbols::MSG_PEEK == 0 {
                flow.read = flow.read.wrapping_add(answer.value as u32);
            }
        }
        if spec.name != "recvmsg" {
            return Ok(());
        }
        let control = field(arg(spec, 1)?, "msg_control");
        let expected = match control {
            Some(Expr::List(messages)) => {
                let data = messages.first().and_then(|message| field(message, "cmsg_data"));
                data.map(number).transpose()?
            }
            _ => None,
        };
        if expected != answer.left {
            return Err(format!("bytes left to read are {:?}", answer.left));
        }
        Ok(())
    }
}

/// `{events=..., fd=...}`: the number stands for itself.
fn epoll_event(expr: &Expr) -> Said<(i64, u64)> {
    let events = number(field(expr, "events").ok_or("an event without events")?)?;
    let data = ["fd", "ptr", "u32", "u64"].iter().find_map(|name| field(expr, name));
    Ok((events, data.map(number).transpose()?.unwrap_or(0) as u64))
}

fn same_error(error: Errno, name: &str) -> bool {
    error.to_string() == name || error == Errno::EAGAIN && name == "EWOULDBLOCK"
}
