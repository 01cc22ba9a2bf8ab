//! The generator over the kernel's sockets: one thread, readiness events.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::progress::{Progress, TICK_NS};
use super::session::{Run, Session, Waits};
use super::tally::Failure;
use super::{CONNECT_TIMEOUT, Plan};

/// Closer to a due moment than this the loop spins: the kernel's sleep is no finer.
const SPIN_NS: u64 = 2_000_000;

struct Conn {
    stream: Option<TcpStream>,
    session: Session,
    out: Vec<u8>,
    sent: usize,
    connected: bool,
    finished: bool,
}

struct Client<'a> {
    run: &'a mut Run,
    poll: Poll,
    epoch: Instant,
    remote: SocketAddr,
    conns: Vec<Conn>,
    /// Connections that wait for their moment, earliest first: moments are dealt out in order.
    waiting: VecDeque<(u64, usize)>,
    finished: usize,
    connecting: usize,
    buffer: Vec<u8>,
}

/// Runs a plan to its end.
///
/// # Errors
/// No connection could be opened, or the kernel gives no more file descriptors.
pub fn run(plan: &Plan, run: &mut Run) -> io::Result<()> {
    let progress = Progress::new();
    let mut client = Client {
        run,
        poll: Poll::new()?,
        epoch: Instant::now(),
        remote: plan.remote,
        conns: Vec::with_capacity(plan.connections),
        waiting: VecDeque::new(),
        finished: 0,
        connecting: 0,
        buffer: vec![0; 256 * 1024],
    };
    for _ in 0..plan.connections {
        client.conns.push(Conn {
            stream: None,
            session: Session::new(plan.pipeline),
            out: Vec::new(),
            sent: 0,
            connected: false,
            finished: false,
        });
        client.open(client.conns.len() - 1)?;
    }
    let mut events = Events::with_capacity(1024);
    client.connect_all(&mut events)?;
    let begin_ns = client.now_ns();
    client.run.start(begin_ns);
    for number in 0..client.conns.len() {
        client.advance(number, begin_ns)?;
    }
    let stop_ns = client.run.schedule.end_ns() + plan.timeout.as_nanos() as u64;
    let mut shown_ns = begin_ns;
    while client.finished < client.conns.len() {
        let now_ns = client.now_ns();
        if now_ns >= stop_ns {
            break;
        }
        if now_ns - shown_ns >= TICK_NS {
            shown_ns = now_ns;
            client.run.tally.tick(now_ns);
            progress.show(client.run, now_ns);
        }
        let sleep = match client.waiting.front() {
            Some((at, _)) if *at < now_ns + SPIN_NS => Duration::ZERO,
            Some((at, _)) => Duration::from_nanos((at - now_ns - SPIN_NS / 2).min(TICK_NS)),
            None => Duration::from_nanos(TICK_NS),
        };
        client.wait(&mut events, sleep)?;
        client.serve(&events)?;
        client.send_due()?;
    }
    let now_ns = client.now_ns();
    client.run.finish(now_ns);
    Ok(())
}

impl Client<'_> {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wait(&mut self, events: &mut Events, sleep: Duration) -> io::Result<()> {
        match self.poll.poll(events, Some(sleep)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Begins to open a connection.
    fn open(&mut self, number: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.remote)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(number), interest)?;
        let conn = &mut self.conns[number];
        conn.stream = Some(stream);
        conn.connected = false;
        conn.out.clear();
        conn.sent = 0;
        self.connecting += 1;
        Ok(())
    }

    /// Waits until each connection is open or has failed.
    fn connect_all(&mut self, events: &mut Events) -> io::Result<()> {
        let give_up = Instant::now() + CONNECT_TIMEOUT;
        let mut why = io::ErrorKind::TimedOut.into();
        while self.connecting > 0 && Instant::now() < give_up {
            self.wait(events, Duration::from_millis(100))?;
            for event in events.iter() {
                if let Err(error) = self.check_connected(event.token().0) {
                    why = error;
                }
            }
        }
        for number in 0..self.conns.len() {
            if !self.conns[number].connected {
                self.give_up(number);
            }
        }
        if self.finished == self.conns.len() { Err(why) } else { Ok(()) }
    }

    /// Looks whether a connection that is being opened is open.
    fn check_connected(&mut self, number: usize) -> io::Result<()> {
        let conn = &mut self.conns[number];
        let Some(stream) = &conn.stream else { return Ok(()) };
        if conn.connected {
            return Ok(());
        }
        let error = match stream.take_error() {
            Ok(None) => match stream.peer_addr() {
                Ok(_) => {
                    let _ = stream.set_nodelay(true);
                    conn.connected = true;
                    self.connecting -= 1;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(error) => error,
            },
            Ok(Some(error)) | Err(error) => error,
        };
        self.give_up(number);
        Err(error)
    }

    /// A connection cannot be opened: the run goes on without it.
    fn give_up(&mut self, number: usize) {
        let conn = &mut self.conns[number];
        if !conn.finished {
            if !conn.connected {
                self.connecting -= 1;
                self.run.tally.failed(Failure::Connect, 1);
            }
            conn.stream = None;
            conn.finished = true;
            self.finished += 1;
        }
    }

    /// Opens a connection again whose predecessor ended.
    fn reopen(&mut self, number: usize) -> io::Result<()> {
        self.conns[number].stream = None;
        if !self.conns[number].session.wants_more(self.run, self.now_ns()) {
            self.conns[number].connected = true;
            self.give_up(number);
            return Ok(());
        }
        self.run.tally.reconnects += 1;
        self.open(number)
    }

    fn serve(&mut self, events: &Events) -> io::Result<()> {
        for event in events {
            let number = event.token().0;
            if !self.conns[number].connected {
                if self.check_connected(number).is_err() || !self.conns[number].connected {
                    continue;
                }
                let now_ns = self.now_ns();
                self.advance(number, now_ns)?;
            }
            if event.is_readable() {
                self.read(number, event.is_read_closed())?;
            } else if event.is_writable() {
                self.write(number)?;
            }
        }
        Ok(())
    }

    fn send_due(&mut self) -> io::Result<()> {
        let now_ns = self.now_ns();
        while let Some((at, number)) = self.waiting.front().copied() {
            if at > now_ns {
                break;
            }
            self.waiting.pop_front();
            if self.conns[number].connected {
                self.advance(number, now_ns)?;
            }
        }
        Ok(())
    }

    /// Reads what is there; `to_end`: the server has closed, so that no further event will come.
    fn read(&mut self, number: usize, to_end: bool) -> io::Result<()> {
        loop {
            let conn = &mut self.conns[number];
            let Some(stream) = &mut conn.stream else { return Ok(()) };
            let count = match stream.read(&mut self.buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    conn.session.broken(self.run, Failure::Reset);
                    return self.reopen(number);
                }
            };
            if count == 0 {
                conn.session.ended(self.run);
                return self.reopen(number);
            }
            let now_ns = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let taken = conn.session.received(self.run, now_ns, &self.buffer[..count]);
            if taken.is_err() || conn.session.is_closing() {
                conn.session.ended(self.run);
                return self.reopen(number);
            }
            self.advance(number, now_ns)?;
            // A short read has emptied the socket: another event comes with the next bytes.
            if count < self.buffer.len() && !to_end {
                return Ok(());
            }
        }
    }

    /// Sends what is due on a connection.
    fn advance(&mut self, number: usize, now_ns: u64) -> io::Result<()> {
        let conn = &mut self.conns[number];
        if conn.finished || !conn.connected {
            return Ok(());
        }
        match conn.session.fill(self.run, now_ns, &mut conn.out) {
            Waits::Answer => {}
            Waits::Until(at) | Waits::AnswerUntil(at) => self.waiting.push_back((at, number)),
            Waits::Finished => {
                conn.stream = None;
                conn.finished = true;
                self.finished += 1;
                return Ok(());
            }
        }
        self.write(number)
    }

    fn write(&mut self, number: usize) -> io::Result<()> {
        let conn = &mut self.conns[number];
        let Some(stream) = &mut conn.stream else { return Ok(()) };
        while conn.sent < conn.out.len() {
            match stream.write(&conn.out[conn.sent..]) {
                Ok(count) => conn.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    conn.session.broken(self.run, Failure::Reset);
                    return self.reopen(number);
                }
            }
        }
        conn.out.clear();
        conn.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::{Limits, Schedule};
    use crate::bench::tally::Tally;
    use std::io::{BufRead, BufReader};
    use std::net::{Ipv4Addr, TcpListener};

    /// A server that gives each connection `answers` answers, then `last`, then closes it.
    fn server(answers: usize, last: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    let mut stream = stream;
                    for i in 0..=answers {
                        while !lines.next()?.ok()?.is_empty() {}
                        let good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";
                        stream.write_all(if i < answers { good } else { last }).ok()?;
                    }
                    Some(())
                });
            }
        });
        address
    }

    fn go(remote: SocketAddr, requests: u64, connections: usize) -> (io::Result<()>, Run) {
        let limits = Limits { duration: Duration::from_secs(20), requests: Some(requests) };
        let plan = Plan { remote, connections, pipeline: 1, timeout: Duration::from_secs(5) };
        let schedule = Schedule::new(limits, None);
        let mut state = Run::new(schedule, Tally::new(false), "h", &["/".to_owned()]);
        (run(&plan, &mut state), state)
    }

    #[test]
    fn each_request_is_answered_once() {
        let (result, run) = go(server(usize::MAX - 1, b""), 500, 7);
        result.unwrap();
        assert_eq!((run.tally.latency.len(), run.tally.body_bytes), (500, 2000));
        assert!(run.tally.failures.is_empty(), "{:?}", run.tally.failures);
    }

    #[test]
    fn a_connection_that_was_closed_is_opened_again() {
        let last = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let (result, run) = go(server(4, last), 50, 1);
        result.unwrap();
        assert_eq!((run.tally.latency.len(), run.tally.reconnects), (50, 9));
        assert!(run.tally.failures.is_empty(), "{:?}", run.tally.failures);
    }

    #[test]
    fn a_short_body_is_noticed() {
        let last = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort";
        let (result, run) = go(server(1, last), 20, 1);
        result.unwrap();
        assert_eq!(run.tally.failures[&Failure::Truncated], 10);
        assert_eq!(run.tally.latency.len(), 10);
    }

    #[test]
    fn nobody_there_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (result, run) = go(address, 1, 2);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(run.tally.failures[&Failure::Connect], 2);
    }
}
