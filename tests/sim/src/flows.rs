//! The applications at both ends of a flow.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddrV4;
use std::rc::{Rc, Weak};
use std::sync::LazyLock;
use std::time::Duration;

use millstream_buf::IoBuf;
use millstream_core::{SendFileError, Stack, TcpListener, TcpStream};
use millstream_disk::File;
use millstream_timer::Instant;

use crate::scenario::{Ending, Flow, Reading, Source};

/// Length of the pattern that all streams repeat: a prime, so that bytes that are out of place by
/// any likely distance differ.
const PERIOD: usize = 65_521;
/// Bytes that a client sends before its stream: the flow's number.
pub const PROLOGUE: usize = 4;
/// Attempts to connect over a path that loses SYNs.
const CONNECTS_MAX: u32 = 50;

/// The pattern, twice in a row.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut period: Vec<u8> = Vec::with_capacity(2 * PERIOD);
    for _ in 0..PERIOD {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        period.push(x as u8);
    }
    period.extend_from_within(..);
    period
});

/// A stream of bytes that is told from others by its number.
#[derive(Clone, Copy, Debug)]
pub struct Pattern(usize);

impl Pattern {
    /// What the client of a flow sends.
    pub fn up(flow: usize) -> Self {
        Self((flow * 2 * 251) % PERIOD)
    }

    /// What the server of a flow sends.
    pub fn down(flow: usize) -> Self {
        Self(((flow * 2 + 1) * 251) % PERIOD)
    }

    /// Up to `len` bytes from `offset` on.
    pub fn at(self, offset: u64, len: usize) -> &'static [u8] {
        let start = (self.0 + (offset % PERIOD as u64) as usize) % PERIOD;
        &PATTERN[start..start + len.min(PERIOD)]
    }

    /// Whether `bytes` are what stands at `offset`.
    pub fn matches(self, mut offset: u64, bytes: &[u8]) -> bool {
        bytes.chunks(PERIOD).all(|chunk| {
            let equal = self.at(offset, chunk.len()) == chunk;
            offset += chunk.len() as u64;
            equal
        })
    }

    fn file(self, len: u64) -> File {
        let mut bytes = Vec::with_capacity(len as usize);
        while bytes.len() < len as usize {
            let rest = len as usize - bytes.len();
            bytes.extend_from_slice(self.at(bytes.len() as u64, rest));
        }
        File::in_memory(bytes)
    }
}

/// How one end of a flow fared.
#[derive(Debug, Default)]
pub struct End {
    /// Its connection, while the application holds it.
    pub stream: Weak<TcpStream>,
    /// Bytes that the connection has taken: of slices and files, when it has taken all of one.
    pub written: u64,
    /// Bytes read, all as they should be.
    pub read: u64,
    /// The first byte that was not: its offset.
    pub differs_at: Option<u64>,
    /// How reading ended: the end of the stream, or an error.
    pub reading: Option<io::Result<()>>,
    /// How writing ended.
    pub writing: Option<io::Result<()>>,
}

/// How a flow fared.
#[derive(Debug, Default)]
pub struct Progress {
    /// The client.
    pub client: End,
    /// The server.
    pub server: End,
    /// The client's port.
    pub port: u16,
    /// Why it could not connect.
    pub refused: Option<String>,
    /// When the first SYN was sent, and when the client had read everything.
    pub span: (Option<Instant>, Option<Instant>),
    /// When the server was done.
    pub server_end: Option<Instant>,
    /// The client's task has ended.
    pub client_done: bool,
    /// The server has taken the connection, and is done with it if the second is true.
    pub server_done: (bool, bool),
}

/// The progress of all flows.
pub type Board = Rc<RefCell<Vec<Progress>>>;

fn pause(stack: &Stack, micros: u64) -> millstream_core::Sleep {
    stack.sleep(Duration::from_micros(micros))
}

/// Which end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connects.
    Client,
    /// The one that listens.
    Server,
}

/// An application at one end of one flow.
#[derive(Clone)]
struct Application {
    board: Board,
    flow: usize,
    side: Side,
    stream: Rc<TcpStream>,
}

impl Application {
    fn end<R>(&self, change: impl FnOnce(&mut End) -> R) -> R {
        let mut board = self.board.borrow_mut();
        let progress = &mut board[self.flow];
        match self.side {
            Side::Client => change(&mut progress.client),
            Side::Server => change(&mut progress.server),
        }
    }

    async fn write(&self, pattern: Pattern, len: u64, source: Source) -> io::Result<()> {
        let mut written = 0;
        match source {
            Source::File => {
                let sent = self.stream.send_file(&pattern.file(len), 0..len).await;
                if sent.is_ok() {
                    self.end(|end| end.written += len);
                }
                return sent.map_err(|error| match error {
                    SendFileError::Connection(error) => error,
                    other => io::Error::other(other),
                });
            }
            Source::Write(bytes) => {
                while written < len {
                    let count = (len - written).min(u64::from(bytes)) as usize;
                    let count = self.stream.write(pattern.at(written, count)).await? as u64;
                    self.end(|end| end.written += count);
                    written += count;
                }
            }
            Source::Slices(bytes) => {
                while written < len {
                    let count = (len - written).min(u64::from(bytes)) as usize;
                    let chunk = pattern.at(written, count);
                    self.stream.send_buf(IoBuf::from(chunk)).await?;
                    self.end(|end| end.written += chunk.len() as u64);
                    written += chunk.len() as u64;
                }
            }
        }
        Ok(())
    }

    async fn read(&self, pattern: Pattern, reading: Reading) -> io::Result<()> {
        let mut offset = 0;
        let mut buffer = [0; 4096];
        let mut stalled = false;
        loop {
            match reading {
                Reading::Slow { bytes, pause_us } => {
                    let mut left = bytes.max(1) as usize;
                    while left > 0 {
                        let room = left.min(buffer.len());
                        let count = self.stream.read(&mut buffer[..room]).await?;
                        if count == 0 {
                            return Ok(());
                        }
                        self.take(pattern, &mut offset, &buffer[..count]);
                        left -= count;
                    }
                    pause(self.stream.stack(), pause_us).await;
                }
                Reading::Stall { after, pause_us } if !stalled && offset >= u64::from(after) => {
                    stalled = true;
                    pause(self.stream.stack(), pause_us).await;
                }
                _ => match self.stream.read_buf().await? {
                    None => return Ok(()),
                    Some(buf) => self.take(pattern, &mut offset, &buf),
                },
            }
        }
    }

    fn take(&self, pattern: Pattern, offset: &mut u64, bytes: &[u8]) {
        self.end(|end| {
            if !pattern.matches(*offset, bytes) && end.differs_at.is_none() {
                end.differs_at = Some(*offset);
            }
            end.read += bytes.len() as u64;
        });
        *offset += bytes.len() as u64;
    }

    async fn write_to_the_end(&self, pattern: Pattern, len: u64, source: Source) {
        let outcome = self.write(pattern, len, source).await;
        self.stream.shutdown();
        self.end(|end| end.writing = Some(outcome));
    }

    async fn read_to_the_end(&self, pattern: Pattern, reading: Reading) {
        let outcome = self.read(pattern, reading).await;
        self.end(|end| end.reading = Some(outcome));
    }
}

/// Two futures at once, in one task.
async fn both(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    let (mut one_done, mut other_done) = (false, false);
    std::future::poll_fn(|cx| {
        one_done = one_done || one.as_mut().poll(cx).is_ready();
        other_done = other_done || other.as_mut().poll(cx).is_ready();
        if one_done && other_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// The client of a flow, from its start to its end.
pub async fn client(stack: Stack, server: SocketAddrV4, number: usize, flow: Flow, board: Board) {
    run_client(&stack, server, number, flow, &board).await;
    let mut board = board.borrow_mut();
    board[number].client_done = true;
    board[number].span.1 = Some(stack.now());
}

async fn run_client(stack: &Stack, server: SocketAddrV4, number: usize, flow: Flow, board: &Board) {
    pause(stack, flow.start_us).await;
    board.borrow_mut()[number].span.0 = Some(stack.now());
    let mut attempts = 0;
    let stream = loop {
        attempts += 1;
        match stack.connect(server).await {
            Ok(stream) => break Rc::new(stream),
            Err(error) if attempts == CONNECTS_MAX => {
                board.borrow_mut()[number].refused = Some(error.to_string());
                return;
            }
            // All its SYNs were lost, or the server is away.
            Err(_) => pause(stack, 100_000 << attempts.min(8)).await,
        }
    };
    let application =
        Application { board: Rc::clone(board), flow: number, side: Side::Client, stream };
    application.end(|end| end.stream = Rc::downgrade(&application.stream));
    board.borrow_mut()[number].port =
        application.stream.local_addr().map_or(0, |address| address.port());
    let prologue = (number as u32).to_be_bytes();
    if let Err(error) = application.stream.write_all(&prologue).await {
        application.end(|end| end.reading = Some(Err(error)));
        return;
    }
    let read = application.read_to_the_end(Pattern::down(number), flow.client_reads);
    match flow.ending {
        Ending::Shutdown => {
            let write = application.write_to_the_end(Pattern::up(number), flow.up, flow.up_source);
            both(read, write).await;
        }
        Ending::ServerFirst => {
            // The server writes all and closes; then this side does.
            read.await;
            application.write_to_the_end(Pattern::up(number), flow.up, flow.up_source).await;
        }
        Ending::Abort(after) => {
            let outcome = application.write(Pattern::up(number), after, flow.up_source).await;
            application.end(|end| end.writing = Some(outcome));
            application.stream.abort();
        }
    }
}

/// The server of all flows.
pub async fn serve(stack: Stack, listener: TcpListener, flows: Rc<[Flow]>, board: Board) {
    loop {
        let (stream, _) = listener.accept().await;
        let stream = Rc::new(stream);
        let task = serve_one(stream, Rc::clone(&flows), Rc::clone(&board));
        if stack.spawn(task).is_err() {
            board.borrow_mut()[0].refused = Some("the server has no task left".into());
        }
    }
}

async fn serve_one(stream: Rc<TcpStream>, flows: Rc<[Flow]>, board: Board) {
    let mut prologue = [0; PROLOGUE];
    let mut have = 0;
    while have < PROLOGUE {
        match stream.read(&mut prologue[have..]).await {
            Ok(count @ 1..) => have += count,
            // A connection that its client has given up.
            _ => return,
        }
    }
    let number = u32::from_be_bytes(prologue) as usize;
    let Some(flow) = flows.get(number) else {
        board.borrow_mut()[0].refused = Some(format!("a flow {number} out of nowhere"));
        return;
    };
    board.borrow_mut()[number].server_done.0 = true;
    let application = Application { board, flow: number, side: Side::Server, stream };
    application.end(|end| end.stream = Rc::downgrade(&application.stream));
    both(
        application.read_to_the_end(Pattern::up(number), flow.server_reads),
        application.write_to_the_end(Pattern::down(number), flow.down, flow.down_source),
    )
    .await;
    let now = application.stream.stack().now();
    let progress = &mut application.board.borrow_mut()[number];
    progress.server_done.1 = true;
    progress.server_end = Some(now);
}
