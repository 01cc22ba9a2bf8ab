//! The thread that the stack lives on.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;

use millstream_packetdrill::calls::{Answer, Call, Pending};
use millstream_packetdrill::options::OptionValue;
use millstream_packetdrill::shell;
use millstream_packetdrill::socket::Sockets;
use millstream_packetdrill::symbols::Errno;
use millstream_packetdrill::world::Settings;
use millstream_timer::Instant;

use crate::fds::Fds;

/// Where the script's shell commands are sent to, by programs that stand in for the real ones.
const COMMANDS: &str = "MILLSTREAM_PACKETDRILL_COMMANDS";
/// The longest time that passes while a packet is waited for, in microseconds.
const PATIENCE_US: u64 = 3_600_000_000;

/// What is asked of the stack.
pub(crate) enum Request {
    Socket(i32, i32, i32),
    Bind(i32, SocketAddrV4),
    Listen(i32, i32),
    /// Descriptor, call, time-out in milliseconds.
    Call(i32, Call, i64),
    Fcntl(i32, i32, i32),
    Ioctl(i32, i64),
    Close(i32),
    Shutdown(i32, i32),
    GetOption(i32, i32, i32),
    SetOption(i32, i32, i32, OptionValue),
    EpollCreate,
    EpollControl(i32, i32, i32, i64, u64),
    Inject(Vec<u8>),
    NextPacket,
    /// Microseconds.
    Sleep(u64),
    Now,
    Owns(i32),
    /// Shell commands of the script.
    Command(String),
    End,
}

/// What it answers.
pub(crate) enum Reply {
    Outcome(Result<Answer, Errno>),
    Option(Result<OptionValue, Errno>),
    /// A packet and when it was sent, in microseconds.
    Packet(Option<(i64, Vec<u8>)>),
    Owned(bool),
}

type Question = (Request, ThreadId, Sender<Reply>);

/// The way to the thread.
pub(crate) struct Handle(Sender<Question>);

impl Handle {
    /// Starts the thread.
    pub fn start(address: Ipv4Addr) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || Server::new(address).run(&receiver));
        if let Some(path) = std::env::var_os(COMMANDS)
            && let Ok(socket) = UnixDatagram::bind(Path::new(&path))
        {
            let sender = sender.clone();
            std::thread::spawn(move || forward_commands(&socket, &sender));
        }
        Self(sender)
    }

    /// Asks, and sleeps until there is an answer.
    pub fn ask(&self, request: Request) -> Reply {
        let (sender, receiver) = channel();
        if self.0.send((request, std::thread::current().id(), sender)).is_err() {
            return Reply::Outcome(Err(Errno::EBADF));
        }
        receiver.recv().unwrap_or(Reply::Outcome(Err(Errno::EBADF)))
    }
}

/// Takes the script's shell commands from those who stand in for the real ones. Each is answered
/// when it was done, so that it is done before the script goes on.
fn forward_commands(socket: &UnixDatagram, server: &Sender<Question>) {
    let mut text = [0; 4096];
    while let Ok((len, from)) = socket.recv_from(&mut text) {
        let commands = String::from_utf8_lossy(&text[..len]).into_owned();
        let (sender, receiver) = channel();
        let question = (Request::Command(commands), std::thread::current().id(), sender);
        if server.send(question).is_err() {
            return;
        }
        let _ = receiver.recv();
        if let Some(path) = from.as_pathname() {
            let _ = socket.send_to(b"done", path);
        }
    }
}

/// What became of waiting for a packet.
enum Next {
    /// It, or none will come.
    Packet(Option<(i64, Vec<u8>)>),
    /// A call has ended meanwhile, and no time may pass.
    Later,
}

/// A call that waits.
struct Blocked {
    pending: Pending,
    thread: ThreadId,
    answer: Sender<Reply>,
    accepts: bool,
}

struct Server {
    sockets: Sockets,
    fds: Fds,
    blocked: Vec<Blocked>,
    /// A thread whose call has ended, and that has not asked for the time since: it does so before
    /// it lets packetdrill go on, and no time may pass until then.
    returning: Option<ThreadId>,
    /// A question to be asked again.
    later: Option<Question>,
}

impl Server {
    fn new(address: Ipv4Addr) -> Self {
        let settings = Settings { address, ..Settings::default() };
        Self {
            sockets: Sockets::new(settings, 0),
            fds: Fds::default(),
            blocked: Vec::new(),
            returning: None,
            later: None,
        }
    }

    fn run(&mut self, questions: &Receiver<Question>) {
        let mut waiting = Vec::new();
        loop {
            waiting.extend(self.later.take());
            let question = match waiting.pop() {
                Some(question) => question,
                None => match questions.recv() {
                    Ok(question) => question,
                    Err(_) => return,
                },
            };
            let (request, thread, answer) = question;
            let passes = matches!(request, Request::Sleep(_) | Request::NextPacket);
            if passes && self.returning.is_some_and(|returning| returning != thread) {
                // First the thread whose call has ended looks at the clock.
                while let Ok((request, other, sender)) = questions.recv() {
                    let done = Some(other) == self.returning;
                    self.serve(request, other, sender);
                    if done {
                        break;
                    }
                }
                waiting.push((request, thread, answer));
                continue;
            }
            if matches!(request, Request::End) {
                let _ = answer.send(outcome(Ok(0)));
                return;
            }
            self.serve(request, thread, answer);
        }
    }

    fn serve(&mut self, request: Request, thread: ThreadId, answer: Sender<Reply>) {
        if self.returning == Some(thread) {
            self.returning = None;
        }
        let fd = |fds: &Fds, fd: i32| fds.socket(fd);
        let reply = match request {
            Request::Call(number, call, timeout) => {
                return self.call(number, call, timeout, thread, answer);
            }
            Request::Socket(domain, kind, protocol) => {
                let made =
                    self.sockets.socket(i64::from(domain), i64::from(kind), i64::from(protocol));
                outcome(made.and_then(|socket| self.number(socket)))
            }
            Request::Bind(number, address) => {
                let made = self.sockets.bind(fd(&self.fds, number), address);
                outcome(made.map(|()| 0))
            }
            Request::Listen(number, backlog) => {
                let made = self.sockets.listen(fd(&self.fds, number), i64::from(backlog));
                outcome(made.map(|()| 0))
            }
            Request::Fcntl(number, command, argument) => outcome(self.sockets.fcntl(
                fd(&self.fds, number),
                i64::from(command),
                i64::from(argument),
            )),
            Request::Ioctl(number, request) => {
                outcome(self.sockets.ioctl(fd(&self.fds, number), request))
            }
            Request::Close(number) => {
                let made = self.sockets.close(fd(&self.fds, number));
                self.fds.close(number);
                outcome(made.map(|()| 0))
            }
            Request::Shutdown(number, how) => {
                let made = self.sockets.shutdown(fd(&self.fds, number), i64::from(how));
                outcome(made.map(|()| 0))
            }
            Request::GetOption(number, level, name) => Reply::Option(self.sockets.option(
                fd(&self.fds, number),
                i64::from(level),
                i64::from(name),
            )),
            Request::SetOption(number, level, name, value) => {
                let socket = fd(&self.fds, number);
                let made =
                    self.sockets.set_option(socket, i64::from(level), i64::from(name), &value);
                outcome(made.map(|()| 0))
            }
            Request::EpollCreate => {
                let set = self.sockets.epoll_create();
                outcome(self.number(set))
            }
            Request::EpollControl(set, operation, number, events, data) => {
                let made = self.sockets.epoll_control(
                    fd(&self.fds, set),
                    i64::from(operation),
                    fd(&self.fds, number),
                    events,
                    data,
                );
                outcome(made.map(|()| 0))
            }
            Request::Inject(packet) => {
                self.sockets.world().inject(&packet);
                self.progress();
                outcome(Ok(0))
            }
            Request::NextPacket => match self.next_packet() {
                Next::Packet(packet) => Reply::Packet(packet),
                Next::Later => {
                    self.later = Some((Request::NextPacket, thread, answer));
                    return;
                }
            },
            Request::Sleep(span_us) => {
                let until = self.sockets.now().plus_micros(span_us);
                self.pass(until);
                outcome(Ok(0))
            }
            Request::Now => {
                // packetdrill waits for the last microseconds by looking at the clock.
                let until = self.sockets.now().plus_micros(1);
                self.pass(until);
                outcome(Ok(self.sockets.now().as_micros() as i64))
            }
            Request::Owns(number) => Reply::Owned(self.fds.owns(number)),
            Request::Command(commands) => {
                if let Err(error) = shell::run(&mut self.sockets, &commands, Path::new(".")) {
                    eprintln!("millstream: {error}");
                }
                outcome(Ok(0))
            }
            Request::End => outcome(Ok(0)),
        };
        let _ = answer.send(reply);
        self.progress();
    }

    /// The system's number for a socket.
    fn number(&mut self, socket: i32) -> Result<i64, Errno> {
        self.fds.open(socket).map(i64::from).ok_or(Errno::ENOBUFS)
    }

    fn call(
        &mut self,
        number: i32,
        mut call: Call,
        timeout: i64,
        thread: ThreadId,
        answer: Sender<Reply>,
    ) {
        if let Call::Poll(asked) = &mut call {
            for (fd, _) in asked {
                *fd = self.fds.socket(*fd);
            }
        }
        let accepts = matches!(call, Call::Accept);
        let socket = self.fds.socket(number);
        let mut pending = self.sockets.begin(socket, call, timeout);
        match self.sockets.attempt(&mut pending) {
            Some(outcome) => {
                let outcome = self.finished(accepts, outcome);
                let _ = answer.send(Reply::Outcome(outcome));
            }
            None => self.blocked.push(Blocked { pending, thread, answer, accepts }),
        }
    }

    fn finished(&mut self, accepts: bool, outcome: Result<Answer, Errno>) -> Result<Answer, Errno> {
        let mut answer = outcome?;
        if accepts {
            answer.value = self.number(answer.value as i32)?;
        }
        Ok(answer)
    }

    /// Ends the calls that wait no more.
    fn progress(&mut self) {
        for mut blocked in std::mem::take(&mut self.blocked) {
            match self.sockets.attempt(&mut blocked.pending) {
                Some(outcome) => {
                    let outcome = self.finished(blocked.accepts, outcome);
                    self.returning = Some(blocked.thread);
                    let _ = blocked.answer.send(Reply::Outcome(outcome));
                }
                None => self.blocked.push(blocked),
            }
        }
    }

    /// Lets time pass; less if a call ends.
    fn pass(&mut self, until: Instant) {
        while self.sockets.now() < until && self.returning.is_none() {
            let next = self.blocked.iter().map(|b| b.pending.until()).min();
            let next = next.map_or(until, |next| next.min(until));
            self.sockets.world().step(next);
            self.progress();
        }
    }

    /// The next packet that the stack sends, however long that takes.
    fn next_packet(&mut self) -> Next {
        let until = self.sockets.now().plus_micros(PATIENCE_US);
        loop {
            if let Some((moment, packet)) = self.sockets.world().take_packet() {
                return Next::Packet(Some((moment.as_micros() as i64, packet)));
            }
            if self.returning.is_some() {
                return Next::Later;
            }
            let now = self.sockets.now();
            if now >= until || self.sockets.world().next_deadline() > until {
                return Next::Packet(None);
            }
            self.sockets.world().step(until);
            self.progress();
        }
    }
}

fn outcome(value: Result<i64, Errno>) -> Reply {
    Reply::Outcome(value.map(|value| Answer { value, ..Answer::default() }))
}
