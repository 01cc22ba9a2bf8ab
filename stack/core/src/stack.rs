//! The application's handle on a shard.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use millstream_buf::{Arena, ArenaStats, IoBuf};
use millstream_disk::{DiskStats, File};
use millstream_tcp::{Tcb, TcpStats};
use millstream_timer::{Backup, Instant, TriggerStats};

use crate::block_cache::CacheStats;
use crate::conn::{ConnId, Conns, Facts, NONE};
use crate::executor::{Executor, JoinHandle, TooManyTasks};
use crate::flow::FlowKey;
use crate::listener::ListenError;
use crate::metrics::{RxMetrics, ShardMetrics};
use crate::state::{Sleeper, State, TOKEN_SLEEP, env};
use crate::stream::{TcpListener, TcpStream};
use crate::udp::{BindError, UdpSocket};

/// How long is waited at the least for an address on probation, in microseconds.
const PROBATION_POLL_US: u64 = 100;

/// First port that [`Stack::connect`] chooses.
const EPHEMERAL_FIRST: u16 = 10_000;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer refused it.
    #[error("{0} refused the connection")]
    Refused(SocketAddr),
    /// Nobody answered.
    #[error("{0} did not answer in time")]
    TimedOut(SocketAddr),
    /// No route, or the next hop does not answer.
    #[error("{0} cannot be reached")]
    Unreachable(SocketAddr),
    /// All connections are in use.
    #[error("all {0} connections are in use; raise `limits.connections`")]
    TooMany(usize),
    /// All local ports to that address are in use.
    #[error("all local ports for connections to {0} are in use")]
    NoPort(SocketAddr),
}

/// A handle on a shard: opens sockets, spawns tasks, tells the time. Cheap to clone; stays on the
/// shard's thread.
#[derive(Clone)]
pub struct Stack(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub state: RefCell<State>,
    pub executor: Executor,
    pub backup: OnceCell<Backup>,
    /// The loop looks at containers and policies.
    pub scheduled: Cell<bool>,
    /// The clock wants to know what was done.
    pub clock_spends: bool,
}

impl Stack {
    #[inline]
    pub(crate) fn state(&self) -> RefMut<'_, State> {
        self.0.state.borrow_mut()
    }

    /// Runs a future as a task of the shard. The handle gives its output to whoever awaits it; it
    /// may be dropped.
    ///
    /// # Errors
    /// [`TooManyTasks`] if `limits.tasks` are alive.
    pub fn spawn<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
    ) -> Result<JoinHandle<T>, TooManyTasks> {
        let (handle, state) = JoinHandle::new();
        let task = self.0.executor.spawn(async move { state.complete(future.await) })?;
        handle.set_task(task);
        if self.0.scheduled.get() {
            self.state().task_spawned(task, self.0.executor.current());
        }
        Ok(handle)
    }

    /// Takes connections to `address`, which is ours, `0.0.0.0` for IPv4 alone, or `[::]` for both
    /// versions of IP. At most `backlog` wait to be accepted when another one comes, and as many are
    /// being opened; those are taken when their handshake ends.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn listen(
        &self,
        address: impl Into<SocketAddr>,
        backlog: usize,
    ) -> Result<TcpListener, ListenError> {
        let mut state = self.state();
        let container = state.own_container_of(self.0.executor.current());
        let number = state.listen(address.into(), backlog, None, container)?;
        drop(state);
        Ok(TcpListener::new(self.clone(), number))
    }

    /// Opens a connection. Over IPv6 it waits until the proof of our addresses against duplicates
    /// is over, a second after the start.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn connect(&self, remote: impl Into<SocketAddr>) -> Result<TcpStream, ConnectError> {
        let remote = remote.into();
        if remote.is_ipv6() {
            self.ipv6_settled().await;
        }
        let stream = self.start_connect(None, remote)?;
        poll_fn(|cx| stream.poll_connected(cx, remote)).await?;
        Ok(stream)
    }

    /// Begins to open a connection, from the local port given or from one that is chosen; see
    /// [`TcpStream::poll_established`].
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn start_connect(
        &self,
        local_port: Option<u16>,
        remote: SocketAddr,
    ) -> Result<TcpStream, ConnectError> {
        let mut state = self.state();
        if state.conns.is_full() {
            return Err(ConnectError::TooMany(state.limits.connections));
        }
        let source = match remote.ip() {
            IpAddr::V4(_) => Some(IpAddr::V4(state.station.ipv4.address)),
            IpAddr::V6(ip) => state.source_v6(ip).map(IpAddr::V6),
        };
        let source = source.ok_or(ConnectError::Unreachable(remote))?;
        let any = state
            .hold_key_of(SocketAddr::new(source, 0), remote)
            .ok_or(ConnectError::TooMany(state.limits.connections))?;
        let opened = state.open_actively(&any, local_port, remote);
        state.release_key(&any);
        if let Ok(id) = &opened {
            state.conn_opened_by(id.number, self.0.executor.current());
        }
        Ok(TcpStream::new(self.clone(), opened?))
    }

    /// Waits until no address of ours is on probation any more.
    async fn ipv6_settled(&self) {
        loop {
            let host = |state: RefMut<'_, State>| {
                state.station.ipv6.as_deref().and_then(|host| host.tentative_until())
            };
            // The timer that ends the probation may fire a little after its moment: not without a
            // pause, or the loop that fires it would never turn.
            let pause = self.now().plus_micros(PROBATION_POLL_US);
            match host(self.state()) {
                Some(until) => self.sleep_until(until.max(pause)).await,
                None => return,
            }
        }
    }

    /// Binds a UDP port; 0 chooses a free one.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn udp_bind(&self, port: u16) -> Result<UdpSocket, BindError> {
        let (number, port) = self.state().udp_bind(port)?;
        Ok(UdpSocket::new(self.clone(), number, port))
    }

    /// Ends after `span`.
    pub fn sleep(&self, span: Duration) -> Sleep {
        let until = self.now() + span;
        self.sleep_until(until)
    }

    /// Ends at `until`.
    pub fn sleep_until(&self, until: Instant) -> Sleep {
        Sleep { stack: self.clone(), until, number: None }
    }

    /// Runs `future` for at most `span`; `None` if it has not ended by then.
    pub async fn timeout<F: Future>(&self, span: Duration, future: F) -> Option<F::Output> {
        let mut sleep = self.sleep(span);
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            Pin::new(&mut sleep).poll(cx).map(|()| None)
        })
        .await
    }

    /// Whether a task that computes for long should give way to the loop, because a tick of the
    /// backup has come since the loop last turned. One load; `false` where the shard has no backup.
    #[inline]
    pub fn should_yield(&self) -> bool {
        self.0.backup.get().is_some_and(Backup::is_raised)
    }

    /// Ticks of the backup, and those of them before which the loop had not turned for a whole
    /// period: something held it up. `None`: the shard has no backup.
    pub fn backup_ticks(&self) -> Option<(u64, u64)> {
        self.0.backup.get().map(|backup| (backup.ticks(), backup.missed()))
    }

    /// What trigger points saw so far, if that is recorded
    /// ([`ShardConfig::trace_triggers`](crate::ShardConfig::trace_triggers)). A copy of 90 KiB.
    pub fn trigger_stats(&self) -> Option<TriggerStats> {
        self.state().triggers.as_deref().cloned()
    }

    /// Forgets what trigger points saw so far.
    pub fn clear_trigger_stats(&self) {
        if let Some(stats) = &mut self.state().triggers {
            **stats = TriggerStats::new();
        }
    }

    /// When the current turn of the loop began.
    pub fn now(&self) -> Instant {
        self.state().now
    }

    /// Our IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        self.state().station.ipv4.address
    }

    /// Our IPv6 address: one that reaches beyond the link, or else the link-local one. `None`: IPv6
    /// is not configured, or the proof of our addresses against duplicates is not over.
    pub fn ipv6_address(&self) -> Option<Ipv6Addr> {
        self.state().station.ipv6.as_deref()?.primary()
    }

    /// The buffers that the shard uses.
    pub fn arena(&self) -> Arena {
        self.state().arena.clone()
    }

    /// Where received frames went.
    pub fn rx_metrics(&self) -> RxMetrics {
        self.state().rx_metrics()
    }

    /// What the shard did.
    pub fn metrics(&self) -> ShardMetrics {
        let state = self.state();
        ShardMetrics { time_wait_recycled: state.time_waits.recycled, ..state.metrics }
    }

    /// TCP's counters.
    pub fn tcp_stats(&self) -> TcpStats {
        self.state().tcp_stats
    }

    /// The disk queue's counters.
    pub fn disk_stats(&self) -> DiskStats {
        self.state().disk.stats()
    }

    /// What the cache of file content has done.
    pub fn cache_stats(&self) -> CacheStats {
        self.state().cache.stats()
    }

    /// The block of `file` that begins at `offset`, a multiple of 16 KiB, if it is in the cache.
    pub fn cached_block(&self, file: &File, offset: u64) -> Option<IoBuf> {
        let mut state = self.state();
        if state.cache.is_on() { state.cache.get(file, offset) } else { None }
    }

    /// The fill of the arena.
    pub fn arena_stats(&self) -> ArenaStats {
        self.state().arena.stats()
    }

    /// Slices in the queues of all connections.
    pub fn slices_in_use(&self) -> usize {
        self.state().slices.used()
    }

    /// Connections in any state.
    pub fn connections(&self) -> usize {
        self.state().conns.len()
    }

    /// Connections in TIME_WAIT that no application holds; they are not among [`Self::connections`].
    pub fn time_waits(&self) -> usize {
        self.state().time_waits.len()
    }

    /// Polls of tasks since start: how often the application was called.
    pub fn task_polls(&self) -> u64 {
        self.0.executor.polls()
    }

    /// Bytes of memory that the shard takes for each connection that it may have: state, flow
    /// table, timer.
    pub fn bytes_a_connection() -> usize {
        // Two 8-byte entries of the flow table (it is at most half full), a wheel node, and a place
        // in each of the lists that are as long as there are connections.
        Conns::bytes_each()
            + 2 * size_of::<u64>()
            + millstream_timer::TimerWheel::BYTES_A_TIMER
            + size_of::<u32>()
            + size_of::<crate::conn::ConnId>()
    }

    /// Bytes beyond that on a shard with IPv6: its connections' addresses.
    pub const fn bytes_an_ipv6_connection() -> usize {
        crate::pairs::Pairs::bytes_each()
    }
}

impl State {
    /// Opens a connection between the addresses of `any`.
    fn open_actively(
        &mut self,
        any: &FlowKey,
        local_port: Option<u16>,
        remote: SocketAddr,
    ) -> Result<ConnId, ConnectError> {
        let too_many = ConnectError::TooMany(self.limits.connections);
        let key = match local_port {
            Some(port) => self.flow_from(any, port),
            None => self.free_flow(any),
        };
        let key = key.ok_or(ConnectError::NoPort(remote))?;
        let (isn, ts_offset) = self.isn_for(&key);
        let mss = self.mss(&key);
        let tcb = Tcb::active_open(&mut env!(self), isn, ts_offset, mss);
        let id = self.conns.insert(key, tcb).ok_or(too_many)?;
        self.retain_key(&key);
        self.flows.insert(&key, id.number);
        if let Some(conn) = self.conns.named_mut(id) {
            conn.facts.insert(Facts::HELD);
            conn.listener = NONE;
        }
        self.schedule_output(id.number);
        self.rearm(id.number);
        Ok(id)
    }

    /// The flow from a port of ours to the remote end of `any`, if it is not in use.
    fn flow_from(&self, any: &FlowKey, port: u16) -> Option<FlowKey> {
        let key = any.with_ports(port, any.remote_port());
        let conns = &self.conns;
        let used = self.flows.find(&key, |n| conns.get(n).is_some_and(|c| c.key == key));
        (used.is_none() && !self.time_waits.contains(&key)).then_some(key)
    }

    /// A flow between the addresses and to the remote port of `any` that is not in use. The first
    /// port tried depends on a secret and on the destination (RFC 6056 algorithm 3).
    fn free_flow(&mut self, any: &FlowKey) -> Option<FlowKey> {
        let ports = u16::MAX - EPHEMERAL_FIRST;
        let to = |port| any.with_ports(port, any.remote_port());
        let offset = self.hasher.hash(&to(0)) as u16;
        for _ in 0..ports {
            self.next_port = self.next_port.wrapping_add(1);
            let port = EPHEMERAL_FIRST + offset.wrapping_add(self.next_port) % ports;
            let key = to(port);
            if self.find_conn(&key).is_none()
                && !self.time_waits.contains(&key)
                && self.listener_ports[usize::from(port)] == 0
            {
                return Some(key);
            }
        }
        None
    }
}

/// A future that ends at a time; see [`Stack::sleep`].
pub struct Sleep {
    stack: Stack,
    until: Instant,
    number: Option<u32>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        let stack = self.stack.clone();
        let mut state = stack.state();
        let state = &mut *state;
        if state.now >= until {
            return Poll::Ready(());
        }
        let number = match self.number {
            Some(number) => number,
            None => {
                let number = state.free_sleepers.pop().unwrap_or_else(|| {
                    state.sleepers.push(None);
                    state.sleepers.len() as u32 - 1
                });
                if state.sleepers.len() > state.limits.sleepers {
                    // Bounded like everything else: one too many polls instead of sleeping.
                    state.sleepers.pop();
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let timer = state.wheel.insert(until, TOKEN_SLEEP | number);
                state.sleepers[number as usize] =
                    Some(Sleeper { waker: None, timer, fired: false });
                self.number = Some(number);
                number
            }
        };
        match &mut state.sleepers[number as usize] {
            Some(sleeper) if !sleeper.fired => {
                if !sleeper.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    sleeper.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut state = self.stack.state();
            if let Some(sleeper) = state.sleepers[number as usize].take()
                && let Some(timer) = sleeper.timer
            {
                state.wheel.cancel(timer);
            }
            state.free_sleepers.push(number);
        }
    }
}
