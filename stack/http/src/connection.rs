//! One connection: requests in, responses out, in order.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_buf::{DataSemantics, IoBuf};
use millstream_core::{SendFileError, Sleep, Stack, TcpStream};
use millstream_disk::File;
use millstream_timer::Instant;

use crate::answer::{Answer, Body, Head, Reply, Then};
use crate::names::Ticket;
use crate::response::Status;
use crate::server::Shared;

/// Bytes that are thrown away after a close. A peer that sends more has to take the response first.
const LINGER_BYTES_MAX: usize = 256 << 10;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By the peer, which sends nothing more.
    Peer,
    /// By us, after a response that says so or because the server drains.
    Close,
    /// The peer or the network ended it.
    Broken,
    /// The disk failed; the stack has reset it.
    Disk,
    /// No request came.
    Idle,
    /// The peer reads too slowly.
    SlowReader,
}

/// Received bytes that are not answered yet. They lie in a received frame as long as a request is
/// whole there, else in a vector.
struct Input {
    slice: Option<IoBuf>,
    partial: Vec<u8>,
    /// Bytes of `partial` that are answered.
    at: usize,
    shared: Rc<Shared>,
}

impl Input {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.slice {
            Some(slice) => slice,
            None => self.partial.get(self.at..).unwrap_or_default(),
        }
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        match &mut self.slice {
            Some(slice) if count < slice.len() => slice.advance(count),
            Some(_) => self.slice = None,
            None => {
                self.at += count;
                if self.at >= self.partial.len() {
                    self.forget();
                }
            }
        }
    }

    fn forget(&mut self) {
        self.shared.add_partial(-(self.partial.len() as isize));
        self.partial = Vec::new();
        self.at = 0;
    }

    /// Moves what is left out of the received frame, which then goes back to the driver: a peer
    /// that lets us wait must not hold a frame meanwhile.
    fn stash(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.append(&slice);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.partial.drain(..self.at.min(self.partial.len()));
            self.shared.add_partial(-(self.at as isize));
            self.at = 0;
        }
        self.partial.extend_from_slice(bytes);
        self.shared.add_partial(bytes.len() as isize);
    }

    /// Takes a received slice. `false` if it cannot complete a request: it has no end of a line.
    #[inline]
    fn take(&mut self, slice: IoBuf) -> bool {
        if self.slice.is_none() && self.partial.is_empty() {
            self.slice = Some(slice);
            return true;
        }
        self.stash();
        self.append(&slice);
        slice.contains(&b'\n')
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.forget();
    }
}

/// The one timer of a connection. Its deadline moves with every request; the timer itself is set
/// only when it is needed earlier than it stands, or has fired.
struct Pace {
    stack: Stack,
    deadline: Instant,
    sleep: Option<(Sleep, Instant)>,
    /// While sending waits: bytes of the response queued when the current time of grace began.
    grace: Option<u64>,
    timeout: Duration,
    bytes_min: u64,
}

impl Pace {
    /// Ready when the deadline has passed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.stack.now();
        loop {
            if now >= self.deadline {
                return Poll::Ready(());
            }
            let deadline = self.deadline;
            let stands = self.sleep.as_ref().is_some_and(|(_, at)| *at <= deadline && *at > now);
            if !stands {
                self.sleep = Some((self.stack.sleep_until(deadline), deadline));
            }
            if let Some((sleep, _)) = &mut self.sleep
                && Pin::new(sleep).poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            self.sleep = None;
        }
    }

    /// Sending waits, after `queued` bytes of this response found room (room comes with
    /// acknowledgements), or were acknowledged. Ready when the peer has taken too little for too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>, queued: u64) -> Poll<()> {
        loop {
            if let Some(before) = self.grace {
                if self.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if queued.saturating_sub(before) < self.bytes_min {
                    return Poll::Ready(());
                }
            }
            self.grace = Some(queued);
            self.deadline = self.stack.now() + self.timeout;
        }
    }
}

/// Lets go of a ticket when its request is given up.
struct Waiting {
    shared: Rc<Shared>,
    ticket: Ticket,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.site.borrow_mut().names.forget(self.ticket);
    }
}

pub(crate) struct Connection {
    shared: Rc<Shared>,
    stream: TcpStream,
    input: Input,
    pace: Pace,
    /// Bytes of the current response that are in the send queue or beyond.
    queued: u64,
}

impl Connection {
    pub fn new(shared: Rc<Shared>, stream: TcpStream) -> Self {
        stream.set_nodelay(true);
        let stack = stream.stack().clone();
        let timeouts = shared.config.timeouts;
        let pace = Pace {
            deadline: stack.now() + timeouts.header,
            stack,
            sleep: None,
            grace: None,
            timeout: timeouts.send,
            bytes_min: timeouts.send_bytes_min,
        };
        let input = Input { slice: None, partial: Vec::new(), at: 0, shared: Rc::clone(&shared) };
        Self { shared, stream, input, pace, queued: 0 }
    }

    /// Serves it to its end.
    pub async fn run(mut self) {
        let Err(end) = self.serve().await;
        self.count(end);
        match end {
            End::Close | End::Idle => self.close().await,
            End::SlowReader => self.stream.abort(),
            End::Peer | End::Broken | End::Disk => {}
        }
    }

    fn count(&self, end: End) {
        let stats = &mut self.shared.site.borrow_mut().stats;
        match end {
            End::Peer | End::Close => {}
            End::Broken => stats.connections_broken += 1,
            End::Disk => stats.disk_errors += 1,
            End::Idle => stats.timeouts_idle += 1,
            End::SlowReader => stats.timeouts_send += 1,
        }
    }

    async fn serve(&mut self) -> Result<Infallible, End> {
        let mut fresh = true;
        loop {
            let bytes = self.input.bytes();
            let mut answer = if bytes.is_empty() || !fresh {
                Answer::Partial
            } else {
                let now = self.pace.stack.now();
                self.shared.site.borrow_mut().answer(bytes, now)
            };
            if let Answer::Wait(ticket) = answer {
                answer = self.wait_for_name(ticket).await;
            }
            let reply = match answer {
                Answer::Reply(reply, consumed) => {
                    self.input.consume(consumed);
                    fresh = true;
                    reply
                }
                Answer::Partial => match self.receive().await? {
                    Received::Bytes { complete } => {
                        fresh = complete;
                        let Some(status) = self.too_much() else { continue };
                        self.refuse(status)
                    }
                    Received::TooSlow => self.refuse(Status::REQUEST_TIMEOUT),
                },
                // A name is waited for once.
                Answer::Wait(_) => self.refuse(Status::UNAVAILABLE),
            };
            let then = reply.then;
            self.send(reply).await?;
            match then {
                Then::Stay => {
                    let timeouts = &self.shared.config.timeouts;
                    let begun = !self.input.bytes().is_empty();
                    let span = if begun { timeouts.header } else { timeouts.idle };
                    self.pace.deadline = self.pace.stack.now() + span;
                }
                Then::Close => return Err(End::Close),
            }
        }
    }

    /// Waits until a helper has looked the request's name up, and answers it.
    #[cold]
    async fn wait_for_name(&mut self, ticket: Ticket) -> Answer {
        // The frame that it came in goes back to the driver meanwhile.
        self.input.stash();
        let waiting = Waiting { shared: Rc::clone(&self.shared), ticket };
        poll_fn(|cx| waiting.shared.site.borrow_mut().names.poll(ticket, cx)).await;
        drop(waiting);
        let now = self.pace.stack.now();
        self.shared.site.borrow_mut().answer_known(self.input.bytes(), now)
    }

    fn refuse(&mut self, status: Status) -> Reply {
        let mut site = self.shared.site.borrow_mut();
        if status == Status::REQUEST_TIMEOUT {
            site.stats.timeouts_header += 1;
        }
        site.refuse(status, true, self.pace.stack.now())
    }

    /// The status for a beginning of a request that will not be waited for any longer.
    fn too_much(&mut self) -> Option<Status> {
        if self.input.slice.is_some() {
            return None;
        }
        let bytes = self.input.bytes();
        if bytes.len() > self.shared.config.head_bytes_max {
            // It may be whole by now.
            let whole = matches!(crate::request::parse(bytes), crate::request::Parsed::Request(..));
            let line_ended = bytes.contains(&b'\n');
            return match (whole, line_ended) {
                (true, _) => None,
                (false, true) => Some(Status::FIELDS_TOO_LARGE),
                (false, false) => Some(Status::URI_TOO_LONG),
            };
        }
        (self.shared.partial_bytes() > self.shared.config.partial_bytes_max)
            .then_some(Status::UNAVAILABLE)
    }

    /// Waits for the next slice.
    async fn receive(&mut self) -> Result<Received, End> {
        let Self { shared, stream, input, pace, .. } = self;
        // Empty lines between requests are skipped (RFC 9112 section 2.2).
        input.consume(empty_lines(input.bytes()));
        if input.slice.is_some() {
            // A request that goes on in the next slice; its time begins now.
            pace.deadline = pace.deadline.min(pace.stack.now() + shared.config.timeouts.header);
            input.stash();
        }
        poll_fn(|cx| {
            let slice = match stream.poll_read_buf(cx) {
                Poll::Ready(Ok(Some(slice))) => slice,
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(End::Peer)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Broken)),
                Poll::Pending => {
                    let waits = input.bytes().is_empty();
                    if waits && shared.is_draining() {
                        return Poll::Ready(Err(End::Close));
                    }
                    return pace.poll(cx).map(|()| match waits {
                        true => Err(End::Idle),
                        false => Ok(Received::TooSlow),
                    });
                }
            };
            let mut slice = slice;
            if input.bytes().is_empty() {
                slice.advance(empty_lines(&slice));
                if slice.is_empty() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            let complete = input.take(slice);
            Poll::Ready(Ok(Received::Bytes { complete }))
        })
        .await
    }

    #[inline]
    async fn send(&mut self, reply: Reply) -> Result<(), End> {
        self.pace.grace = None;
        self.queued = 0;
        match reply.head {
            Head::Shared(head) => self.send_slice(head).await?,
            Head::Scratch => self.send_scratch().await?,
        }
        match reply.body {
            Body::None => Ok(()),
            Body::Slices(slices, range) => self.send_slices(&slices, range).await,
            Body::File(file, range) => self.send_file(file, range).await,
        }
    }

    async fn send_slice(&mut self, mut slice: IoBuf) -> Result<(), End> {
        let Self { shared, stream, input, pace, queued } = self;
        let copies = shared.config.semantics == DataSemantics::Copy;
        poll_fn(|cx| {
            while !slice.is_empty() {
                let before = slice.len();
                let sent = if copies {
                    stream.poll_write(cx, &slice).map_ok(|count| slice.advance(count))
                } else {
                    stream.poll_send_buf(cx, &mut slice)
                };
                match sent {
                    Poll::Ready(Ok(())) => *queued += (before - slice.len()) as u64,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Broken)),
                    Poll::Pending => {
                        input.stash();
                        return pace.poll_stall(cx, *queued).map(|()| Err(End::SlowReader));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn send_slices(&mut self, slices: &[IoBuf], range: Range<usize>) -> Result<(), End> {
        let mut start = 0;
        for slice in slices {
            let end = start + slice.len();
            let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
            if from < to {
                self.send_slice(slice.slice(from - start..to - start)).await?;
            }
            start = end;
        }
        Ok(())
    }

    /// Sends what the answer left in the scratch buffer. It is copied out of there before anybody
    /// else can run: into the send queue, or what does not fit, into a vector.
    async fn send_scratch(&mut self) -> Result<(), End> {
        let Self { shared, stream, input, pace, queued } = self;
        let mut rest: Option<Vec<u8>> = None;
        poll_fn(|cx| {
            let site = shared.site.borrow();
            let mut bytes: &[u8] = rest.as_deref().unwrap_or(&site.scratch);
            let waits = loop {
                if bytes.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                match stream.poll_write(cx, bytes) {
                    Poll::Ready(Ok(count)) => {
                        *queued += count as u64;
                        bytes = bytes.get(count..).unwrap_or_default();
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Broken)),
                    Poll::Pending => break bytes.to_vec(),
                }
            };
            drop(site);
            rest = Some(waits);
            input.stash();
            pace.poll_stall(cx, *queued).map(|()| Err(End::SlowReader))
        })
        .await
    }

    async fn send_file(&mut self, file: File, range: Range<u64>) -> Result<(), End> {
        let Self { stream, input, pace, .. } = self;
        input.stash();
        pace.grace = None;
        let mut sending = pin!(stream.send_file(&file, range));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(SendFileError::Disk { .. })) => Poll::Ready(Err(End::Disk)),
            Poll::Ready(Err(_)) => Poll::Ready(Err(End::Broken)),
            Poll::Pending => {
                pace.poll_stall(cx, stream.acked_total()).map(|()| Err(End::SlowReader))
            }
        })
        .await
    }

    /// Closes in good order, by us first (RFC 9112 section 9.6): ends our direction, and reads on so
    /// that nothing the peer sends makes a reset of the close, which would destroy what it has not
    /// read yet. Over when the peer closes; at the latest some time after it has acknowledged
    /// everything, for which it has as long as for any response.
    pub async fn close(&mut self) {
        if self.linger().await == Err(End::SlowReader) {
            self.count(End::SlowReader);
            self.stream.abort();
        }
    }

    async fn linger(&mut self) -> Result<(), End> {
        let Self { shared, stream, input, pace, .. } = self;
        stream.shutdown();
        input.slice = None;
        input.forget();
        pace.grace = None;
        let mut room = LINGER_BYTES_MAX;
        let mut flushed = false;
        let mut flushing = pin!(stream.flushed());
        poll_fn(|cx| {
            // Without room left, the window closes and holds the peer back.
            while room > 0
                && let Poll::Ready(read) = stream.poll_read_buf(cx)
            {
                // Its end, or a reset.
                let Ok(Some(slice)) = read else { return Poll::Ready(Ok(())) };
                room = room.saturating_sub(slice.len());
            }
            if !flushed {
                match flushing.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                    Poll::Pending => {
                        let acked = stream.acked_total();
                        return pace.poll_stall(cx, acked).map(|()| Err(End::SlowReader));
                    }
                }
                flushed = true;
                pace.deadline = pace.stack.now() + shared.config.timeouts.linger;
            }
            if room == 0 {
                return Poll::Ready(Ok(()));
            }
            pace.poll(cx).map(Ok)
        })
        .await
    }
}

/// Bytes of empty lines at the beginning.
fn empty_lines(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

enum Received {
    Bytes {
        /// They may make a request whole.
        complete: bool,
    },
    TooSlow,
}
