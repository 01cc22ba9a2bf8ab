//! The server: what its connections share, and how they come and go.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use millstream_core::{Stack, TcpListener, TcpStream};
use millstream_disk::{DiskQueue, Source};

use crate::answer::Site;
use crate::config::ServerConfig;
use crate::connection::Connection;
use crate::fill::{Filler, LOOK_EVERY};
use crate::response::Status;
use crate::stats::HttpStats;

/// Serves the files below a directory. Cheap to clone; stays on its shard's thread.
///
/// ```no_run
/// # use millstream_core::Stack;
/// # use millstream_disk::{QueueKind, Root, open_queue};
/// # use millstream_http::{FileServer, ServerConfig};
/// # use std::net::{Ipv4Addr, SocketAddrV4};
/// # async fn serve(stack: Stack) -> Result<(), Box<dyn std::error::Error>> {
/// let fills = open_queue(QueueKind::Pread, &stack.arena(), FileServer::FILL_DEPTH)?;
/// let server = FileServer::new(&stack, Root::open("/srv/www")?, fills, ServerConfig::default());
/// let listener = stack.listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80), 1024)?;
/// server.serve(listener).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FileServer {
    stack: Stack,
    shared: Rc<Shared>,
}

pub(crate) struct Shared {
    pub config: ServerConfig,
    pub site: RefCell<Site>,
    partial_bytes: Cell<isize>,
    listeners: Cell<usize>,
    /// Connections that were turned away and still linger.
    leaving: Cell<usize>,
    /// Tasks to be woken when the server drains, by number.
    wakers: RefCell<Wakers>,
}

#[derive(Default)]
struct Wakers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Shared {
    pub fn is_draining(&self) -> bool {
        self.site.borrow().draining
    }

    pub fn add_partial(&self, bytes: isize) {
        self.partial_bytes.set(self.partial_bytes.get() + bytes);
    }

    pub fn partial_bytes(&self) -> usize {
        self.partial_bytes.get().max(0) as usize
    }
}

/// A place among those to be woken.
struct Place {
    shared: Rc<Shared>,
    number: usize,
    is_listener: bool,
}

impl Place {
    fn for_listener(shared: &Rc<Shared>) -> Self {
        shared.listeners.set(shared.listeners.get() + 1);
        let mut place = Self::new(shared);
        place.is_listener = true;
        place
    }

    fn new(shared: &Rc<Shared>) -> Self {
        let mut wakers = shared.wakers.borrow_mut();
        let number = wakers.free.pop().unwrap_or_else(|| {
            wakers.slots.push(None);
            wakers.slots.len() - 1
        });
        Self { shared: Rc::clone(shared), number, is_listener: false }
    }

    fn register(&self, cx: &Context<'_>) {
        if let Some(slot) = self.shared.wakers.borrow_mut().slots.get_mut(self.number)
            && !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut wakers = self.shared.wakers.borrow_mut();
        if let Some(slot) = wakers.slots.get_mut(self.number) {
            *slot = None;
        }
        wakers.free.push(self.number);
        let listeners = &self.shared.listeners;
        listeners.set(listeners.get() - usize::from(self.is_listener));
    }
}

/// One of the connections that were turned away and have not closed yet. They are bounded too.
struct Leaving(Rc<Shared>);

impl Leaving {
    fn new(shared: &Rc<Shared>) -> Option<Self> {
        let max = (shared.config.connections / 16).max(16);
        let count = shared.leaving.get();
        (count < max).then(|| {
            shared.leaving.set(count + 1);
            Self(Rc::clone(shared))
        })
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leaving.set(self.0.leaving.get() - 1);
    }
}

impl FileServer {
    /// Depth that the queue for [`Self::new`] needs in order to fill the cache well.
    pub const FILL_DEPTH: usize = 16;

    /// A server for the files of `source`, a [`Root`](millstream_disk::Root) or an image. `fills`
    /// brings small files into the cache, beside the stack's own queue, which carries the transfers.
    pub fn new(
        stack: &Stack,
        source: impl Into<Source>,
        fills: Box<dyn DiskQueue>,
        config: ServerConfig,
    ) -> Self {
        let site = Site::new(source.into(), stack, config, Filler::new(fills));
        let shared = Shared {
            config,
            site: RefCell::new(site),
            partial_bytes: Cell::new(0),
            listeners: Cell::new(0),
            leaving: Cell::new(0),
            wakers: RefCell::default(),
        };
        Self { stack: stack.clone(), shared: Rc::new(shared) }
    }

    /// Takes connections and serves each in a task of its own, until [`Self::drain`].
    pub async fn serve(&self, listener: TcpListener) {
        let place = Place::for_listener(&self.shared);
        let mut accept = |cx: &mut Context<'_>| {
            if self.shared.is_draining() {
                return Poll::Ready(None);
            }
            place.register(cx);
            listener.poll_accept(cx).map(Some)
        };
        while let Some((stream, _peer)) = poll_fn(&mut accept).await {
            if self.connections() >= self.shared.config.connections {
                self.turn_away(stream);
                continue;
            }
            let server = self.clone();
            if self.stack.spawn(async move { server.serve_connection(stream).await }).is_err() {
                // The stream went with the future: closed, or reset if a request is there already.
                self.shared.site.borrow_mut().stats.connections_refused += 1;
            }
        }
    }

    /// Serves one connection to its end.
    pub async fn serve_connection(&self, stream: TcpStream) {
        self.shared.site.borrow_mut().stats.connections += 1;
        let place = Place::new(&self.shared);
        poll_fn(|cx| {
            place.register(cx);
            Poll::Ready(())
        })
        .await;
        let connection = Connection::new(Rc::clone(&self.shared), stream);
        let mut connection = std::pin::pin!(connection.run());
        poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            self.attend();
            polled
        })
        .await;
    }

    /// Answers all requests from `source` from now on, without a word to any connection: what is being
    /// sent goes on from where it was. Validators of files in images change with the image.
    pub fn set_source(&self, source: impl Into<Source>) {
        self.shared.site.borrow_mut().set_source(source.into());
    }

    /// Takes no more connections, closes those that wait for a request, and the others after their
    /// response. [`Self::connections`] tells when that is over.
    pub fn drain(&self) {
        self.shared.site.borrow_mut().draining = true;
        let wakers: Vec<_> = self.shared.wakers.borrow().slots.iter().flatten().cloned().collect();
        wakers.iter().for_each(Waker::wake_by_ref);
    }

    /// Connections that are being served or closed; not those that were turned away.
    pub fn connections(&self) -> usize {
        let wakers = self.shared.wakers.borrow();
        wakers.slots.len() - wakers.free.len() - self.shared.listeners.get()
    }

    /// Counters since it was made.
    pub fn stats(&self) -> HttpStats {
        self.shared.site.borrow().stats
    }

    /// One write without waiting, then the close. While there are not too many of them, a task of its
    /// own lingers on it, as a request that comes later would make a reset of the close; after that
    /// only what has arrived by now is taken care of.
    #[cold]
    fn turn_away(&self, stream: TcpStream) {
        let mut site = self.shared.site.borrow_mut();
        site.stats.connections_refused += 1;
        site.refuse(Status::UNAVAILABLE, true, self.stack.now());
        let mut cx = Context::from_waker(Waker::noop());
        let _ = stream.poll_write(&mut cx, &site.scratch);
        drop(site);
        stream.shutdown();
        // No more than the window holds; the shard does not receive meanwhile.
        while let Poll::Ready(Ok(Some(_))) = stream.poll_read_buf(&mut cx) {}
        if let Some(leaving) = Leaving::new(&self.shared) {
            let mut connection = Connection::new(Rc::clone(&self.shared), stream);
            // Without a task to spare, the stream goes with the future.
            let _ = self.stack.spawn(async move {
                connection.close().await;
                drop(leaving);
            });
        }
    }

    /// Sees to it that a task looks after the reads that fill the cache, and after names that are
    /// looked up, while there are any.
    #[inline]
    fn attend(&self) {
        {
            let site = &mut *self.shared.site.borrow_mut();
            if site.attended || (site.filler.is_idle() && site.names.is_idle()) {
                return;
            }
            site.attended = true;
        }
        let shared = Rc::clone(&self.shared);
        let stack = self.stack.clone();
        let task = async move {
            while look_after(&shared) {
                stack.sleep(LOOK_EVERY).await;
            }
        };
        if self.stack.spawn(task).is_err() {
            // The next request tries again.
            self.shared.site.borrow_mut().attended = false;
        }
    }
}

/// Takes what has been read and looked up; `false` if nothing more is under way.
fn look_after(shared: &Shared) -> bool {
    let mut filled = Vec::new();
    let mut site = shared.site.borrow_mut();
    site.filler.poll(|one| filled.push(one));
    for one in filled {
        site.filled(one.entry, one.slices);
    }
    site.names.take_notices();
    let idle = site.filler.is_idle() && site.names.is_idle();
    if idle {
        site.attended = false;
    }
    !idle
}
