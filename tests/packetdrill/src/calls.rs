//! The calls that may wait: each is begun, and asked after every change of the world whether it has
//! ended.

use std::net::{SocketAddr, SocketAddrV4};

use millstream_core::SendFlags;
use millstream_tcp::State;
use millstream_timer::Instant;

use crate::socket::{Kind, Outcome, Socket, Sockets, poll_once};
use crate::symbols::{Errno, MSG_DONTWAIT, MSG_EOR, MSG_MORE, MSG_OOB, MSG_PEEK, MSG_TRUNC};

/// A call that may wait.
#[derive(Clone, Debug)]
pub enum Call {
    /// `accept`
    Accept,
    /// `connect`
    Connect(SocketAddrV4),
    /// `read`, `recv`, `readv`, `recvmsg`, `recvfrom`: so many bytes.
    Receive {
        /// Room for this many; `None`: the buffer is at address 0.
        room: Option<usize>,
        /// `MSG_...`
        flags: i64,
    },
    /// `write`, `send`, `writev`, `sendmsg`, `sendto`.
    Send {
        /// The bytes; `None`: the buffer is at address 0.
        data: Option<Vec<u8>>,
        /// `MSG_...`
        flags: i64,
    },
    /// `poll`: descriptors and what is asked of them.
    Poll(Vec<(i32, i64)>),
    /// `epoll_wait`: at most so many.
    EpollWait(usize),
}

/// What a call gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What it returns.
    pub value: i64,
    /// Bytes read.
    pub data: Vec<u8>,
    /// `TCP_CM_INQ`: bytes that can still be read.
    pub left: Option<i64>,
    /// The peer.
    pub peer: Option<SocketAddr>,
    /// What descriptors are ready for, with the data of `epoll`.
    pub ready: Vec<(i64, u64)>,
}

impl Answer {
    fn of(value: i64) -> Self {
        Self { value, ..Self::default() }
    }
}

/// A call under way.
#[derive(Debug)]
pub struct Pending {
    fd: i32,
    call: Call,
    /// Bytes sent already.
    sent: usize,
    /// Full once: what is left waits until a third of the buffer is free.
    full: bool,
    nonblocking: bool,
    until: Instant,
}

impl Pending {
    /// When it ends whatever happens.
    pub fn until(&self) -> Instant {
        self.until
    }
}

impl Sockets {
    /// Begins a call. `timeout_ms` is for `poll` and `epoll_wait`; negative: none.
    pub fn begin(&mut self, fd: i32, call: Call, timeout_ms: i64) -> Pending {
        let flags = match &call {
            Call::Receive { flags, .. } | Call::Send { flags, .. } => *flags,
            _ => 0,
        };
        let nonblocking =
            flags & MSG_DONTWAIT != 0 || self.socket_at(fd).is_ok_and(|socket| socket.nonblocking);
        let timed = matches!(call, Call::Poll(_) | Call::EpollWait(_));
        let until = match u64::try_from(timeout_ms) {
            Ok(millis) if timed => self.now().plus_micros(millis * 1000),
            _ => Instant::FAR_FUTURE,
        };
        Pending { fd, call, sent: 0, full: false, nonblocking, until }
    }

    /// Asks whether a call has ended; `None`: it waits.
    pub fn attempt(&mut self, pending: &mut Pending) -> Option<Outcome<Answer>> {
        let call = std::mem::replace(&mut pending.call, Call::Accept);
        let outcome = match &call {
            Call::Accept => self.accept(pending),
            Call::Connect(to) => self.connect(pending, *to),
            Call::Receive { room, flags } => self.receive(pending, *room, *flags),
            Call::Send { data, flags } => self.send(pending, data.as_deref(), *flags),
            Call::Poll(asked) => self.poll(pending, asked),
            Call::EpollWait(max) => match self.epoll_ready(pending.fd, *max) {
                Ok(ready) if ready.is_empty() && self.now() < pending.until => None,
                Ok(ready) => {
                    Some(Ok(Answer { ready: ready.clone(), ..Answer::of(ready.len() as i64) }))
                }
                Err(error) => Some(Err(error)),
            },
        };
        pending.call = call;
        self.world().settle();
        outcome
    }

    /// A call that is not expected to wait; `None`: it would.
    pub fn call(&mut self, fd: i32, call: Call) -> Option<Outcome<Answer>> {
        let mut pending = self.begin(fd, call, 0);
        self.attempt(&mut pending)
    }

    fn accept(&mut self, pending: &Pending) -> Option<Outcome<Answer>> {
        let socket = match self.socket_at(pending.fd) {
            Ok(socket) => socket,
            Err(error) => return Some(Err(error)),
        };
        let Kind::Listening(listener) = &socket.kind else { return Some(Err(Errno::EINVAL)) };
        let Some((stream, peer)) = poll_once(|cx| listener.poll_accept(cx)) else {
            return pending.nonblocking.then_some(Err(Errno::EAGAIN));
        };
        let mut accepted = Socket::new(Kind::Fresh, false);
        accepted.options = socket.options.clone();
        accepted.bound = socket.bound;
        accepted.connect_told = true;
        stream.set_nodelay(accepted.options.nodelay);
        if accepted.options.cork {
            stream.set_cork(true);
        }
        accepted.kind = Kind::Connected(stream);
        let fd = self.install(accepted);
        Some(Ok(Answer { peer: Some(peer), ..Answer::of(i64::from(fd)) }))
    }

    fn connect(&mut self, pending: &mut Pending, to: SocketAddrV4) -> Option<Outcome<Answer>> {
        let stack = self.world().stack().clone();
        let socket = match self.socket_at(pending.fd) {
            Ok(socket) => socket,
            Err(error) => return Some(Err(error)),
        };
        match &socket.kind {
            Kind::Fresh => {
                socket.options.apply(&stack);
                let port = socket.bound.map(|bound| bound.port()).filter(|port| *port != 0);
                let stream = match stack.start_connect(port, to.into()) {
                    Ok(stream) => stream,
                    Err(_) => return Some(Err(Errno::EADDRNOTAVAIL)),
                };
                stream.set_nodelay(socket.options.nodelay);
                socket.kind = Kind::Connected(stream);
                pending.sent = 1;
                pending.nonblocking.then_some(Err(Errno::EINPROGRESS))
            }
            Kind::Connected(stream) => {
                if socket.connect_told {
                    return Some(Err(Errno::EISCONN));
                }
                match poll_once(|cx| stream.poll_established(cx)) {
                    Some(Ok(())) => {
                        socket.connect_told = true;
                        Some(Ok(Answer::of(0)))
                    }
                    Some(Err(_)) => Some(Err(socket.take_error().unwrap_or(Errno::ECONNABORTED))),
                    None if pending.nonblocking && pending.sent == 0 => Some(Err(Errno::EALREADY)),
                    None => None,
                }
            }
            Kind::Listening(_) => Some(Err(Errno::EISCONN)),
            Kind::Epoll(_) => Some(Err(Errno::ENOTSOCK)),
        }
    }

    fn receive(
        &mut self,
        pending: &Pending,
        room: Option<usize>,
        flags: i64,
    ) -> Option<Outcome<Answer>> {
        match self.receive_inner(pending, room, flags) {
            Ok(Some(answer)) => Some(Ok(answer)),
            Ok(None) => pending.nonblocking.then_some(Err(Errno::EAGAIN)),
            Err(error) => Some(Err(error)),
        }
    }

    fn receive_inner(
        &mut self,
        pending: &Pending,
        room: Option<usize>,
        flags: i64,
    ) -> Outcome<Option<Answer>> {
        let socket = self.socket_at(pending.fd)?;
        let stream = match &socket.kind {
            Kind::Connected(stream) => stream,
            Kind::Epoll(_) => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOTCONN),
        };
        if flags & MSG_OOB != 0 {
            // Urgent data stays in line (RFC 6093 section 3.1).
            return Err(Errno::EINVAL);
        }
        let readable = stream.readable_bytes();
        if readable > 0 {
            let Some(room) = room else { return Err(Errno::EFAULT) };
            let mut data = vec![0; room.min(readable)];
            if flags & MSG_PEEK != 0 {
                let count = stream.peek(&mut data);
                data.truncate(count);
            } else {
                let mut count = 0;
                while count < data.len()
                    && let Some(Ok(more @ 1..)) =
                        poll_once(|cx| stream.poll_read(cx, &mut data[count..]))
                {
                    count += more;
                }
                data.truncate(count);
            }
            let mut answer = Answer::of(data.len() as i64);
            if flags & MSG_TRUNC == 0 {
                answer.data = data;
            }
            if socket.options.queue_length {
                let left = stream.readable_bytes();
                // The end of the stream counts as a byte, so that zero means "nothing".
                let end = left == 0 && stream.peer_closed();
                answer.left = Some(left as i64 + i64::from(end));
            }
            return Ok(Some(answer));
        }
        if room == Some(0) {
            return Ok(Some(Answer::of(0)));
        }
        if socket.shut_read || stream.peer_closed() && stream.error().is_none() {
            return Ok(Some(Answer::of(0)));
        }
        if let Some(error) = socket.take_error() {
            return Err(error);
        }
        if let Kind::Connected(stream) = &socket.kind {
            match stream.state() {
                State::SynSent | State::SynReceived => return Ok(None),
                State::Closed => return Ok(Some(Answer::of(0))),
                _ => {}
            }
        }
        Ok(None)
    }

    fn send(
        &mut self,
        pending: &mut Pending,
        data: Option<&[u8]>,
        flags: i64,
    ) -> Option<Outcome<Answer>> {
        match self.send_inner(pending, data, flags) {
            Ok(true) => Some(Ok(Answer::of(pending.sent as i64))),
            Ok(false) if pending.nonblocking => Some(match pending.sent {
                0 => Err(Errno::EAGAIN),
                sent => Ok(Answer::of(sent as i64)),
            }),
            Ok(false) => None,
            // What was sent before is told first.
            Err(_) if pending.sent > 0 => Some(Ok(Answer::of(pending.sent as i64))),
            Err(error) => Some(Err(error)),
        }
    }

    /// Sends what there is room for; whether that was all.
    fn send_inner(
        &mut self,
        pending: &mut Pending,
        data: Option<&[u8]>,
        flags: i64,
    ) -> Outcome<bool> {
        loop {
            let socket = self.socket_at(pending.fd)?;
            let stream = match &socket.kind {
                Kind::Connected(stream) => stream,
                Kind::Epoll(_) => return Err(Errno::EINVAL),
                _ => return Err(Errno::EPIPE),
            };
            if stream.error().is_some() || socket.shut_write {
                return Err(socket.take_error().unwrap_or(Errno::EPIPE));
            }
            match stream.state() {
                State::Established | State::CloseWait => {}
                State::SynSent | State::SynReceived => return Ok(false),
                _ => return Err(Errno::EPIPE),
            }
            let Some(data) = data else { return Err(Errno::EFAULT) };
            let rest = data.get(pending.sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(true);
            }
            let queued = stream.unacked_bytes();
            if pending.full && !socket.options.is_writable(queued) {
                return Ok(false);
            }
            pending.full = false;
            // Linux fills its last buffer, of half the peer's window at most, before it looks
            // whether the socket may have another.
            let info = stream.info();
            let mss = info.map_or(536, |info| usize::from(info.mss_bytes));
            let window = info.map_or(0, |info| info.snd_wnd_max_bytes as usize);
            let piece = (window / 2).min(65_000).max(mss) / mss * mss;
            let tail = stream.unsent_bytes() % piece;
            let mut room = if tail > 0 { piece - tail } else { 0 };
            if room == 0 {
                if queued as i64 >= socket.options.send_limit() {
                    pending.full = true;
                    return Ok(false);
                }
                room = piece;
            }
            let count = rest.len().min(room);
            let last = count == rest.len();
            let how = SendFlags {
                more: flags & MSG_MORE != 0,
                end_of_record: flags & MSG_EOR != 0 && last,
            };
            match poll_once(|cx| stream.poll_send(cx, &rest[..count], how)) {
                Some(Ok(count)) => pending.sent += count,
                Some(Err(_)) => return Err(socket.take_error().unwrap_or(Errno::EPIPE)),
                None => return Ok(false),
            }
            self.world().settle();
        }
    }

    fn poll(&mut self, pending: &Pending, asked: &[(i32, i64)]) -> Option<Outcome<Answer>> {
        let ready: Vec<(i64, u64)> = asked
            .iter()
            .map(|(fd, events)| {
                use crate::symbols::{POLLERR, POLLHUP, POLLNVAL};
                let ready = self.readiness(*fd) & (events | POLLERR | POLLHUP | POLLNVAL);
                (ready, 0)
            })
            .collect();
        let count = ready.iter().filter(|(ready, _)| *ready != 0).count();
        if count == 0 && self.now() < pending.until {
            return None;
        }
        Some(Ok(Answer { ready, ..Answer::of(count as i64) }))
    }
}
