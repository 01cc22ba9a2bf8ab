//! Descriptors, and the calls on them that never wait.

use std::net::SocketAddrV4;
use std::task::{Context, Poll, Waker};

use millstream_core::{TcpListener, TcpStream};
use millstream_tcp::{ConnectionError, State};
use millstream_timer::Instant;

use crate::epoll::Epoll;
use crate::options::Options;
use crate::symbols::{Errno, F_GETFL, F_SETFL, O_NONBLOCK, O_RDWR, SIOCINQ, SIOCOUTQ, SIOCOUTQNSD};
use crate::symbols::{
    POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLRDHUP, POLLRDNORM, POLLWRNORM,
};
use crate::symbols::{SOCK_STREAM, SOL_IP};
use crate::world::{Settings, World};

/// What a call gives.
pub type Outcome<T> = Result<T, Errno>;

/// What a descriptor stands for.
pub(crate) enum Kind {
    /// A socket without a connection.
    Fresh,
    /// One that takes connections.
    Listening(TcpListener),
    /// One with a connection, or on the way to it.
    Connected(TcpStream),
    /// A set of descriptors to wait for.
    Epoll(Epoll),
}

/// An open descriptor.
pub(crate) struct Socket {
    pub kind: Kind,
    pub nonblocking: bool,
    pub bound: Option<SocketAddrV4>,
    pub options: Options,
    /// The application knows that the connection was opened.
    pub connect_told: bool,
    /// The application was told of the connection's error, which is told once.
    pub error_told: bool,
    pub shut_read: bool,
    pub shut_write: bool,
}

impl Socket {
    pub fn new(kind: Kind, nonblocking: bool) -> Self {
        Self {
            kind,
            nonblocking,
            bound: None,
            options: Options::default(),
            connect_told: false,
            error_told: false,
            shut_read: false,
            shut_write: false,
        }
    }

    /// The connection's error, if the application does not know of it yet.
    pub fn error(&self) -> Option<Errno> {
        let Kind::Connected(stream) = &self.kind else { return None };
        if self.error_told {
            return None;
        }
        match stream.error()? {
            ConnectionError::Refused => Some(Errno::ECONNREFUSED),
            ConnectionError::Reset if stream.peer_closed() => Some(Errno::EPIPE),
            ConnectionError::Reset => Some(Errno::ECONNRESET),
            ConnectionError::TimedOut => Some(Errno::ETIMEDOUT),
            ConnectionError::Aborted if self.connect_told => None,
            ConnectionError::Aborted => Some(Errno::EHOSTUNREACH),
        }
    }

    /// The connection's error, which from now on the application knows.
    pub fn take_error(&mut self) -> Option<Errno> {
        let error = self.error()?;
        self.error_told = true;
        Some(error)
    }

    /// What it is ready for.
    pub fn ready(&self) -> i64 {
        let stream = match &self.kind {
            Kind::Fresh => return POLLOUT | POLLHUP | POLLWRNORM,
            Kind::Listening(listener) if listener.pending() > 0 => return POLLIN | POLLRDNORM,
            Kind::Listening(_) => return 0,
            Kind::Epoll(_) => return 0,
            Kind::Connected(stream) => stream,
        };
        let state = stream.state();
        if matches!(state, State::SynSent | State::SynReceived) {
            return 0;
        }
        let mut ready = 0;
        let peer_closed = stream.peer_closed() || state == State::Closed || self.shut_read;
        let we_closed = self.shut_write || !state.accepts_data();
        if self.error().is_some() {
            ready |= POLLERR;
        }
        if state == State::Closed || peer_closed && we_closed {
            ready |= POLLHUP;
        }
        if peer_closed {
            ready |= POLLIN | POLLRDNORM | POLLRDHUP;
        }
        if stream.readable_bytes() > 0 {
            ready |= POLLIN | POLLRDNORM;
        }
        if we_closed || self.options.is_writable(stream.unacked_bytes()) {
            ready |= POLLOUT | POLLWRNORM;
        }
        ready
    }
}

/// Sockets as Linux has them, over a virtual world.
pub struct Sockets {
    settings: Settings,
    world: Option<World>,
    pub(crate) table: Vec<Option<Socket>>,
    /// Descriptors below this one are not ours.
    first: i32,
    /// What was counted when counting last started anew.
    forgotten: Vec<(&'static str, u64)>,
}

impl Sockets {
    /// No socket is open. Descriptors count from `first` on.
    pub fn new(settings: Settings, first: i32) -> Self {
        Self { settings, world: None, table: Vec::new(), first, forgotten: Vec::new() }
    }

    /// The world, which begins with the first call that needs it.
    pub fn world(&mut self) -> &mut World {
        self.world.get_or_insert_with(|| World::new(&self.settings))
    }

    /// How the world begins, as long as it has not; then: how it began.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Turns a knob of Linux.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), String> {
        self.settings.sysctls.set(name, value)?;
        if self.world.is_some() {
            let sysctls = self.settings.sysctls.clone();
            let world = self.world();
            world.sysctls = sysctls;
            let config = world.sysctls.tcp_config();
            world.stack().set_tcp_config(config);
        }
        Ok(())
    }

    /// Closes the device's queue, so that nothing can be sent, or opens it again.
    pub fn stop_wire(&mut self, stopped: bool) {
        if let Some(world) = &mut self.world {
            world.stop_wire(stopped);
        } else if stopped {
            self.world().stop_wire(true);
        }
    }

    /// Starts counting anew.
    pub fn forget_counters(&mut self) {
        let counters = self.counters();
        self.forgotten = counters;
    }

    /// What one of Linux's counters has counted since [`Self::forget_counters`].
    pub fn counter(&mut self, name: &str) -> Option<u64> {
        let find = |counters: &[(&str, u64)]| {
            counters.iter().find(|(known, _)| *known == name).map(|(_, count)| *count)
        };
        Some(find(&self.counters())? - find(&self.forgotten).unwrap_or(0))
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        let stats = self.world().stack().tcp_stats();
        vec![
            ("TcpExtBeyondWindow", stats.bad_seq_drops),
            ("TcpRetransSegs", stats.retransmits),
            ("TcpExtTCPChallengeACK", stats.challenge_acks),
        ]
    }

    /// The moment.
    pub fn now(&mut self) -> Instant {
        self.world().now()
    }

    pub(crate) fn socket_at(&mut self, fd: i32) -> Outcome<&mut Socket> {
        let index = usize::try_from(fd - self.first).map_err(|_| Errno::EBADF)?;
        self.table.get_mut(index).and_then(Option::as_mut).ok_or(Errno::EBADF)
    }

    /// Whether the descriptor is one of ours.
    pub fn owns(&self, fd: i32) -> bool {
        usize::try_from(fd - self.first)
            .is_ok_and(|index| self.table.get(index).is_some_and(Option::is_some))
    }

    pub(crate) fn install(&mut self, socket: Socket) -> i32 {
        let index = match self.table.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.table.push(None);
                self.table.len() - 1
            }
        };
        self.table[index] = Some(socket);
        self.first + index as i32
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// It is not a stream of IPv4.
    pub fn socket(&mut self, domain: i64, kind: i64, protocol: i64) -> Outcome<i32> {
        if domain != 2 {
            return Err(Errno::EAFNOSUPPORT);
        }
        if kind & 0xf != SOCK_STREAM || !matches!(protocol, SOL_IP | 6) {
            return Err(Errno::EPROTONOSUPPORT);
        }
        let world = self.world();
        let options = Options::new(&world.sysctls);
        let mut socket = Socket::new(Kind::Fresh, kind & O_NONBLOCK != 0);
        socket.options = options;
        Ok(self.install(socket))
    }

    /// Gives a socket its address.
    ///
    /// # Errors
    /// The port is taken, or the socket has an address.
    pub fn bind(&mut self, fd: i32, address: SocketAddrV4) -> Outcome<()> {
        let socket = self.socket_at(fd)?;
        if socket.bound.is_some() || !matches!(socket.kind, Kind::Fresh) {
            return Err(Errno::EINVAL);
        }
        let reuse = socket.options.reuse_address;
        let taken = self.table.iter().flatten().any(|other| {
            other.bound.is_some_and(|bound| bound.port() == address.port())
                && (matches!(other.kind, Kind::Listening(_))
                    || !(reuse && other.options.reuse_address))
        });
        if taken && address.port() != 0 {
            return Err(Errno::EADDRINUSE);
        }
        self.socket_at(fd)?.bound = Some(address);
        Ok(())
    }

    /// Takes connections.
    ///
    /// # Errors
    /// The socket has no address or a connection.
    pub fn listen(&mut self, fd: i32, backlog: i64) -> Outcome<()> {
        let stack = self.world().stack().clone();
        let socket = self.socket_at(fd)?;
        match socket.kind {
            Kind::Fresh => {}
            Kind::Listening(_) => return Ok(()),
            Kind::Connected(_) => return Err(Errno::EINVAL),
            Kind::Epoll(_) => return Err(Errno::ENOTSOCK),
        }
        let address = socket.bound.ok_or(Errno::EDESTADDRREQ)?;
        let ours = SocketAddrV4::new([0; 4].into(), address.port());
        // Linux lets one more wait than it was told.
        let backlog = backlog.clamp(0, 4096) as usize + 1;
        socket.options.apply(&stack);
        let listener = stack.listen(ours, backlog).map_err(|_| Errno::EADDRINUSE)?;
        self.socket_at(fd)?.kind = Kind::Listening(listener);
        Ok(())
    }

    /// Ends one direction or both: 0 reading, 1 writing, 2 both.
    ///
    /// # Errors
    /// There is no connection.
    pub fn shutdown(&mut self, fd: i32, how: i64) -> Outcome<()> {
        if !(0..=2).contains(&how) {
            return Err(Errno::EINVAL);
        }
        let socket = self.socket_at(fd)?;
        let Kind::Connected(stream) = &socket.kind else { return Err(Errno::ENOTCONN) };
        if stream.state() == State::Closed {
            return Err(Errno::ENOTCONN);
        }
        if how != 1 {
            socket.shut_read = true;
        }
        if how != 0 {
            socket.shut_write = true;
            stream.shutdown();
        }
        self.world().settle();
        Ok(())
    }

    /// Closes a descriptor. With `SO_LINGER` and no time, the connection is reset.
    ///
    /// # Errors
    /// It is not open.
    pub fn close(&mut self, fd: i32) -> Outcome<()> {
        let socket = self.socket_at(fd)?;
        if let (Kind::Connected(stream), Some(0)) = (&socket.kind, socket.options.linger) {
            stream.abort();
        }
        let index = (fd - self.first) as usize;
        self.table[index] = None;
        for other in self.table.iter_mut().flatten() {
            if let Kind::Epoll(epoll) = &mut other.kind {
                epoll.forget(fd);
            }
        }
        self.world().settle();
        Ok(())
    }

    /// `F_GETFL` and `F_SETFL`.
    ///
    /// # Errors
    /// Another command.
    pub fn fcntl(&mut self, fd: i32, command: i64, argument: i64) -> Outcome<i64> {
        let socket = self.socket_at(fd)?;
        match command {
            F_GETFL => Ok(O_RDWR | if socket.nonblocking { O_NONBLOCK } else { 0 }),
            F_SETFL => {
                socket.nonblocking = argument & O_NONBLOCK != 0;
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// How many bytes wait: to be read, to be acknowledged, to be sent.
    ///
    /// # Errors
    /// Another request, or a listener.
    pub fn ioctl(&mut self, fd: i32, request: i64) -> Outcome<i64> {
        let socket = self.socket_at(fd)?;
        let stream = match &socket.kind {
            Kind::Connected(stream) => stream,
            Kind::Listening(_) => return Err(Errno::EINVAL),
            Kind::Fresh => return Ok(0),
            Kind::Epoll(_) => return Err(Errno::ENOTSOCK),
        };
        Ok(match request {
            SIOCINQ => stream.readable_bytes() as i64,
            SIOCOUTQ => stream.unacked_bytes() as i64,
            SIOCOUTQNSD => stream.unsent_bytes() as i64,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// What a descriptor is ready for.
    pub fn readiness(&mut self, fd: i32) -> i64 {
        if fd < 0 {
            return 0;
        }
        self.socket_at(fd).map_or(POLLNVAL, |socket| socket.ready())
    }
}

/// Asks a future-like thing once: nobody is woken, since everything is asked again after each turn.
pub(crate) fn poll_once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    let mut context = Context::from_waker(Waker::noop());
    match poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
