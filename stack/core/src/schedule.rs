//! The loop while containers share the core, or while a policy other than lazy receiver processing
//! for one container is set: who is served when, and who pays.
//!
//! All that a turn does lies between two readings of the clock, and each such lap is charged to one
//! container: the leaf whose turn it was, or [`SYSTEM`] for receiving, demultiplexing and discarding.
//! So the charges of all containers are what the turns took, to the nanosecond.

use arrayvec::ArrayVec;
use millstream_disk::Completion;
use millstream_link::{BURST, Link, RxBurst};
use millstream_timer::{Clock, Instant, Stage};

use crate::agenda::{Item, Next, PROXY_OWNER};
use crate::container::{DEFAULT, SYSTEM, Work};
use crate::executor::Executor;
use crate::policy::{Disposition, RxPolicy};
use crate::shard::{CLOCK_CHECK_NANOS, Shard, Turn};
use crate::stack::Inner;
use crate::state::{Receiver, State, TOKEN_CONN, TOKEN_KIND};

/// Bursts taken from the link in a turn at most: 512 frames.
const BURSTS_A_TURN: usize = 16;

/// The same while everything is processed at once: as good as no bound, but one.
const BURSTS_A_TURN_EAGER: usize = 256;

/// Packets of one channel that are processed before others get a turn.
const PACKETS_A_SERVICE: u16 = 16;

/// Services of a container that others outrank, when it has waited too long.
const OVERDUE_SERVICES: usize = 4;

/// Tasks that run in a turn that does not look at containers.
const TASKS_A_TURN: usize = 64;

/// What a shard had done when its clock was last told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done([u64; Stage::ALL.len()]);

impl Done {
    fn of(state: &State, executor: &Executor) -> Self {
        let (rx, metrics) = (&state.rx, &state.metrics);
        let mut counts = [0; Stage::ALL.len()];
        let mut set = |stage: Stage, count: u64| counts[stage as usize] = count;
        set(Stage::Demux, rx.frames_in);
        set(Stage::Segment, rx.delivered_tcp + rx.delivered_time_wait);
        set(Stage::Syn, rx.delivered_syn);
        set(Stage::Cookie, rx.answered_with_cookie + metrics.syn_cookies_rejected);
        set(Stage::Datagram, rx.delivered_udp + metrics.udp_verified_early);
        let looked_into = [
            rx.refused_tcp,
            rx.delivered_arp,
            rx.delivered_icmp,
            rx.drop_stray,
            rx.drop_l4_checksum,
            rx.drop_backlog_full,
            rx.drop_unsolicited,
            rx.drop_before_cookie,
        ];
        set(Stage::Refusal, looked_into.iter().sum());
        set(Stage::Task, executor.polls());
        set(Stage::Output, metrics.tcp_segments_out + metrics.other_packets_out);
        Self(counts)
    }
}

/// A turn under way.
struct Run<'a, L, C> {
    inner: &'a Inner,
    link: &'a mut L,
    clock: &'a C,
    done: &'a mut Done,
    /// When the last lap ended.
    last: Instant,
    /// Not yet charged, for nobody in particular.
    system_nanos: u64,
    work: usize,
    frames: usize,
}

impl<L: Link, C: Clock> Shard<L, C> {
    /// One turn of the loop, with containers and policies.
    #[inline(never)]
    pub(crate) fn turn_scheduled(&mut self) -> Turn {
        let Self { stack, link, clock, burst, completions, done, clock_check_at, .. } = self;
        let start = clock.now();
        if start >= *clock_check_at {
            clock.check();
            *clock_check_at = start.plus_nanos(CLOCK_CHECK_NANOS);
        }
        let inner = &*stack.0;
        let mut run =
            Run { inner, link, clock, done, last: start, system_nanos: 0, work: 0, frames: 0 };
        let policy = {
            let mut state = inner.state.borrow_mut();
            state.now = start;
            state.policy
        };
        let lazy = matches!(policy, RxPolicy::Lrp | RxPolicy::Srp);
        run.receive(burst, policy);
        run.fire_timers(lazy);
        run.poll_disk(completions);
        if lazy {
            run.serve_containers(start);
        } else {
            // With everything done at once, a frame interrupts whoever runs.
            run.run_tasks(if policy == RxPolicy::Eager { 1 } else { TASKS_A_TURN });
        }
        run.finish(start)
    }
}

impl<L: Link, C: Clock> Run<'_, L, C> {
    /// The time since the last lap.
    fn lap(&mut self) -> u64 {
        let mut state = self.inner.state.borrow_mut();
        if self.clock.spends() {
            let done = Done::of(&state, &self.inner.executor);
            for &stage in Stage::ALL {
                let count = done.0[stage as usize] - self.done.0[stage as usize];
                if count > 0 {
                    self.clock.spend(stage, count);
                }
            }
            *self.done = done;
        }
        let now = self.clock.now();
        let nanos = now.nanos_since(self.last);
        self.last = now;
        state.now = now;
        nanos
    }

    fn lap_system(&mut self) {
        self.system_nanos += self.lap();
    }

    /// Frames from the link into channels; and through them, if the policy does not wait.
    fn receive(&mut self, burst: &mut RxBurst, policy: RxPolicy) {
        let eager = policy == RxPolicy::Eager;
        for _ in 0..if eager { BURSTS_A_TURN_EAGER } else { BURSTS_A_TURN } {
            self.link.rx_burst(burst);
            let count = burst.len();
            if count == 0 {
                break;
            }
            self.work += count;
            self.frames += count;
            if self.clock.spends() {
                self.clock.spend(Stage::Poll, 1);
            }
            let mut state = self.inner.state.borrow_mut();
            state.receive(burst);
            if eager || policy == RxPolicy::EarlyDemux {
                state.serve();
            }
            drop(state);
            self.lap_system();
            if count < BURST && !eager {
                break;
            }
        }
    }

    fn fire_timers(&mut self, lazy: bool) {
        let mut state = self.inner.state.borrow_mut();
        if state.wheel.next_deadline() > self.last {
            return;
        }
        self.work += if lazy { state.hand_out_timers() } else { state.fire_timers() };
        drop(state);
        self.lap_system();
    }

    /// Disk reads that have ended, each charged to the connection that wanted it.
    fn poll_disk(&mut self, completions: &mut ArrayVec<Completion, 32>) {
        if self.inner.state.borrow().splices.in_disk > 0 {
            self.inner.state.borrow_mut().disk.poll(completions);
            self.lap_system();
        }
        self.work += completions.len();
        for completion in completions.drain(..) {
            let bytes = completion.result.as_ref().map_or(0, |bytes| *bytes as u64);
            let owner = {
                let mut state = self.inner.state.borrow_mut();
                let conn = state.splice_conn(completion.token);
                let owner = conn.map_or(SYSTEM, |conn| state.owner_of(conn));
                state.disk_completed(completion);
                owner
            };
            let nanos = self.lap();
            let mut state = self.inner.state.borrow_mut();
            state.containers.charge(owner, nanos, Work::Protocol, self.last);
            state.containers.note(owner, |usage| usage.disk_bytes += bytes);
        }
        let mut state = self.inner.state.borrow_mut();
        self.work += state.splices_again();
        if state.is_waited_for() {
            state.resume_parked();
        }
        drop(state);
        self.lap_system();
    }

    /// Runs tasks in the order in which they became runnable, whose ever they are.
    fn run_tasks(&mut self, count: usize) {
        for _ in 0..count {
            if !self.inner.executor.has_ready() {
                break;
            }
            self.work += 1;
            let task = self.inner.executor.run_one();
            let nanos = self.lap();
            let mut state = self.inner.state.borrow_mut();
            let owner = task.and_then(|(task, ended)| state.task_ran(task, ended, nanos));
            state.containers.charge(owner.unwrap_or(DEFAULT), nanos, Work::Task, self.last);
        }
    }

    /// Puts what is to be done into its owners' lists.
    fn collect(&mut self) {
        let mut state = self.inner.state.borrow_mut();
        if !state.ready.is_empty() {
            state.hand_out_receivers();
        }
        if self.inner.executor.has_ready() {
            let state = &mut *state;
            let Some(agenda) = state.agenda.as_deref_mut() else { return };
            self.inner.executor.drain_ready(|task| {
                if let Some(leaf) = agenda.push_task(task) {
                    state.containers.activate(leaf, state.now);
                }
            });
        }
    }

    /// Serves containers until the turn is over.
    fn serve_containers(&mut self, start: Instant) {
        let (end, overdue_since) = {
            let state = self.inner.state.borrow();
            let nanos = |us: u32| 1_000 * u64::from(us);
            let since = start.as_nanos().saturating_sub(nanos(state.scheduling.overdue_us));
            // What receiving has taken does not count: each turn serves somebody.
            (self.last.plus_nanos(nanos(state.scheduling.turn_us)), Instant::from_nanos(since))
        };
        self.collect();
        let overdue = self.inner.state.borrow().containers.overdue(overdue_since);
        if let Some(leaf) = overdue {
            self.serve_leaf(leaf, end, true);
        }
        while self.last < end {
            let leaf = self.inner.state.borrow_mut().containers.pick(self.last);
            let Some(leaf) = leaf else { break };
            self.serve_leaf(leaf, end, false);
        }
    }

    /// Serves a leaf until its list is empty, the turn is over, or something of a higher priority has
    /// come up. `overdue`: a few packets only, for it is not its turn.
    fn serve_leaf(&mut self, leaf: u16, end: Instant, overdue: bool) {
        // What choosing took.
        self.lap_system();
        let (mut protocol, mut tasks, mut served) = (0, 0, 0);
        loop {
            let next = {
                let mut state = self.inner.state.borrow_mut();
                let Some(agenda) = state.agenda.as_deref_mut() else { return };
                if overdue { agenda.pop_item(leaf).map(Next::Item) } else { agenda.pop(leaf) }
            };
            match next {
                None => break,
                Some(Next::Item(item)) => {
                    self.serve_item(leaf, item);
                    protocol += self.lap();
                }
                Some(Next::Task(task)) => {
                    let ended = self.inner.executor.run_queued(task);
                    let nanos = self.lap();
                    tasks += nanos;
                    self.inner.state.borrow_mut().task_ran(task, ended, nanos);
                }
            }
            served += 1;
            self.collect();
            let outranked = self.inner.state.borrow().containers.is_outranked(leaf);
            if self.last >= end || outranked || (overdue && served == OVERDUE_SERVICES) {
                break;
            }
        }
        self.work += served;
        self.transmit();
        protocol += self.lap();
        let mut state = self.inner.state.borrow_mut();
        let state = &mut *state;
        let containers = &mut state.containers;
        containers.charge(leaf, tasks, Work::Task, self.last);
        containers.charge(leaf, protocol, Work::Protocol, self.last);
        containers.note(leaf, |usage| {
            usage.turns += 1;
            usage.served += served as u64;
        });
        if state.agenda.as_deref().is_some_and(|agenda| agenda.is_empty(leaf)) {
            containers.deactivate(leaf);
        } else {
            containers.had_turn(leaf, self.last);
        }
    }

    fn serve_item(&mut self, leaf: u16, item: Item) {
        let mut state = self.inner.state.borrow_mut();
        if let Item::Signal(conn) = item {
            let handler = state.signal_handler(conn);
            drop(state);
            // It may do with the connection what it likes.
            if let Some(handler) = handler {
                handler();
            }
            self.inner.state.borrow_mut().signalled(conn);
        } else {
            state.serve_item(leaf, item);
        }
    }

    /// Sends what connections have to say. Returns the number of frames.
    fn transmit(&mut self) -> usize {
        let mut state = self.inner.state.borrow_mut();
        if state.output.is_empty() && state.raw.is_empty() {
            return 0;
        }
        state.transmit(self.link)
    }

    fn finish(mut self, start: Instant) -> Turn {
        let sent = self.transmit();
        self.work += sent;
        self.link.flush();
        self.work += usize::from(self.inner.executor.has_ready());
        if self.work > 0 {
            self.lap_system();
        }
        let mut state = self.inner.state.borrow_mut();
        let state = &mut *state;
        if state.splices.in_disk > 0 {
            state.disk.kick();
        }
        state.look_at_buffers(self.link.rx_buffers());
        state.metrics.turns += 1;
        if self.work > 0 {
            state.metrics.busy_turns += 1;
            state.metrics.busy_nanos += self.last.nanos_since(start);
            state.containers.charge(SYSTEM, self.system_nanos, Work::System, self.last);
        }
        Turn { work: self.work, frames: self.frames }
    }
}

impl State {
    /// Whose a connection is.
    pub fn owner_of(&self, conn: u32) -> u16 {
        if let Some(owner) = self.agenda.as_deref().and_then(|agenda| agenda.owner(conn)) {
            return owner;
        }
        let listener = self
            .conns
            .get(conn)
            .and_then(|conn| self.listeners.get(conn.listener as usize).and_then(Option::as_ref));
        listener.map_or(DEFAULT, |listener| listener.container)
    }

    /// Puts receivers with packets into their owners' lists.
    fn hand_out_receivers(&mut self) {
        while let Some(receiver) = self.ready.pop_front() {
            let (leaf, item) = match receiver {
                Receiver::Conn(conn) => {
                    let Some(item) = self.item_for(conn) else { continue };
                    (self.owner_of(conn), item)
                }
                Receiver::Listener(number) => {
                    let listener = self.listener_mut(u32::from(number));
                    let owner = listener.map_or(SYSTEM, |listener| listener.container);
                    (owner, Item::Listener(number))
                }
                Receiver::Proxy => (PROXY_OWNER, Item::Proxy),
            };
            self.put(leaf, item);
        }
    }

    fn put(&mut self, leaf: u16, item: Item) {
        if let Some(agenda) = self.agenda.as_deref_mut() {
            agenda.push(leaf, item);
            self.containers.activate(leaf, self.now);
        }
    }

    /// What is to be done when packets have come for a connection.
    fn item_for(&mut self, conn: u32) -> Option<Item> {
        let dispositions = &self.agenda.as_deref()?.dispositions;
        if self.policy != RxPolicy::Srp || dispositions.is_empty() {
            return Some(Item::Conn(conn));
        }
        match dispositions.get(&conn) {
            None | Some(Disposition::Async) => Some(Item::Conn(conn)),
            Some(Disposition::Catch(_)) => Some(Item::Signal(conn)),
            Some(Disposition::Block) => None,
            Some(Disposition::Ignore) => {
                self.wake_reader(conn);
                None
            }
        }
    }

    /// Timers that are due: those of connections go into their owners' lists.
    fn hand_out_timers(&mut self) -> usize {
        for count in 0..crate::state::TIMERS_A_TURN {
            let Some(token) = self.wheel.pop_expired(self.now) else { return count };
            self.metrics.timers_fired += 1;
            let number = token & !TOKEN_KIND;
            if token & TOKEN_KIND != TOKEN_CONN {
                self.fire_timer(token);
                continue;
            }
            let Some(conn) = self.conns.get_mut(number) else { continue };
            conn.timer = None;
            // It stands in a list: until its turn has come no other entry is wanted.
            conn.timer_at = Instant::ZERO;
            self.put(self.owner_of(number), Item::Timer(number));
        }
        crate::state::TIMERS_A_TURN
    }

    /// Does something of a leaf's list. What is left of it goes to the end of the list.
    fn serve_item(&mut self, leaf: u16, item: Item) {
        let more = match item {
            Item::Conn(conn) | Item::Signal(conn) => self.serve_conn_some(conn, PACKETS_A_SERVICE),
            Item::Listener(number) => self.serve_listener_some(number, PACKETS_A_SERVICE),
            Item::Proxy => self.serve_proxy_some(PACKETS_A_SERVICE),
            Item::Timer(conn) => {
                self.fire_conn_timer(conn);
                false
            }
        };
        if let Item::Conn(number) | Item::Timer(number) = item {
            self.note_held(number, leaf);
        }
        if more {
            self.put(leaf, item);
        }
    }

    /// Notes what a connection holds now.
    fn note_held(&mut self, number: u32, leaf: u16) {
        let Some(conn) = self.conns.get(number) else { return };
        let held = conn.tcb.unacked_bytes() + conn.tcb.readable_bytes();
        if let Some(agenda) = self.agenda.as_deref_mut() {
            agenda.note_held(number, leaf, held, &mut self.containers);
        }
    }

    /// As [`Self::serve_conn`], but at most so many packets. Returns whether there are more.
    fn serve_conn_some(&mut self, number: u32, count: u16) -> bool {
        let Some(conn) = self.conns.get_mut(number) else { return false };
        let mut rest = self.channels.split_off(&mut conn.channel, count);
        self.serve_conn(number);
        if rest.is_empty() {
            return false;
        }
        let Some(conn) = self.conns.get_mut(number) else {
            self.rx.drop_socket_closed += self.channels.clear(&mut rest);
            return false;
        };
        self.channels.append(&mut conn.channel, rest);
        conn.channel.scheduled = true;
        true
    }

    fn serve_listener_some(&mut self, number: u16, count: u16) -> bool {
        let Some(listener) = self.listeners.get_mut(usize::from(number)).and_then(Option::as_mut)
        else {
            return false;
        };
        let mut rest = self.channels.split_off(&mut listener.channel, count);
        self.serve_listener(number);
        if rest.is_empty() {
            return false;
        }
        let Some(listener) = self.listeners.get_mut(usize::from(number)).and_then(Option::as_mut)
        else {
            self.rx.drop_socket_closed += self.channels.clear(&mut rest);
            return false;
        };
        self.channels.append(&mut listener.channel, rest);
        listener.channel.scheduled = true;
        true
    }

    fn serve_proxy_some(&mut self, count: u16) -> bool {
        let rest = self.channels.split_off(&mut self.proxy, count);
        self.serve_proxy();
        if rest.is_empty() {
            return false;
        }
        self.channels.append(&mut self.proxy, rest);
        self.proxy.scheduled = true;
        true
    }

    /// A task has run for so long. Returns whose it is.
    fn task_ran(&mut self, task: u32, ended: bool, nanos: u64) -> Option<u16> {
        if nanos > 1_000 * u64::from(self.scheduling.watchdog_us) {
            self.metrics.tasks_over_bound += 1;
        }
        self.metrics.task_longest_nanos = self.metrics.task_longest_nanos.max(nanos);
        let agenda = self.agenda.as_deref_mut()?;
        let owner = agenda.standings.effective(task).container;
        if ended {
            let own = agenda.standings.own(task).container;
            self.containers.bind(own, -1);
            self.with_standings(|standings, changed| standings.forget(task, changed));
        }
        Some(owner)
    }

    /// Changes how tasks stand; those that wait for their turn do so where they stand then.
    pub fn with_standings<T>(
        &mut self,
        change: impl FnOnce(
            &mut crate::container::Inheritance,
            &mut dyn FnMut(u32, crate::container::Standing),
        ) -> T,
    ) -> Option<T> {
        let agenda = self.agenda.as_deref_mut()?;
        let mut moved: ArrayVec<(u32, u16), 64> = ArrayVec::new();
        let mut standings =
            std::mem::replace(&mut agenda.standings, crate::container::Inheritance::none());
        let out = change(&mut standings, &mut |task, standing| {
            // A chain longer than that stays in its lists; it runs all the same, only later.
            let _ = moved.try_push((task, standing.container));
        });
        agenda.standings = standings;
        for (task, to) in moved {
            if let Some((from, to)) = agenda.move_task(task, to) {
                self.containers.activate(to, self.now);
                if agenda.is_empty(from) {
                    self.containers.deactivate(from);
                }
            }
        }
        Some(out)
    }

    /// Everything out of the lists, to be done in the order of arrival: nothing is lost when a policy
    /// is switched.
    pub fn flush_agenda(&mut self, executor: &Executor) {
        let Some(mut agenda) = self.agenda.take() else { return };
        let mut timers = Vec::new();
        let leaves: Vec<_> = agenda.leaves().collect();
        for leaf in leaves {
            while let Some(next) = agenda.pop(leaf) {
                match next {
                    Next::Task(task) => executor.requeue(task),
                    Next::Item(Item::Conn(conn) | Item::Signal(conn)) => {
                        self.ready.push_back(Receiver::Conn(conn));
                    }
                    Next::Item(Item::Listener(number)) => {
                        self.ready.push_back(Receiver::Listener(number));
                    }
                    Next::Item(Item::Proxy) => self.ready.push_back(Receiver::Proxy),
                    Next::Item(Item::Timer(conn)) => timers.push(conn),
                }
            }
            self.containers.deactivate(leaf);
        }
        for &conn in agenda.dispositions.keys() {
            if let Some(slot) = self.conns.get_mut(conn)
                && !slot.channel.is_empty()
            {
                slot.channel.scheduled = true;
                self.ready.push_back(Receiver::Conn(conn));
            }
        }
        self.agenda = Some(agenda);
        for conn in timers {
            self.fire_conn_timer(conn);
        }
    }
}
