//! One connection: its protocol state and all that the shard keeps beside it.

use std::collections::VecDeque;
use std::task::Waker;

use millstream_buf::{advise_huge_pages, prefetch};
use millstream_tcp::{Events, Tcb};
use millstream_timer::{Instant, TimerId, TimerWheel};

use crate::channel::Channel;
use crate::flow::FlowKey;
use crate::state::TOKEN_CONN;

/// No number.
pub(crate) const NONE: u32 = u32::MAX;

bitflags::bitflags! {
    /// Facts about a connection.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Facts: u16 {
        /// The application holds a stream (or the accept queue does).
        const HELD = 1;
        /// On the list of connections that want to send.
        const IN_OUTPUT = 1 << 1;
        /// The peer's link address is known.
        const HAS_MAC = 1 << 2;
        /// Waits for the address of its next hop.
        const AWAITS_NEIGHBOR = 1 << 3;
        /// A task waits to read.
        const READ_WAITING = 1 << 4;
        /// A task waits to write, to connect or for a file to be sent.
        const WRITE_WAITING = 1 << 5;
        /// Reached ESTABLISHED.
        const ESTABLISHED = 1 << 6;
        /// TCP has nothing left to do.
        const CLOSED = 1 << 7;
        /// Counted among the half-open ones of its listener.
        const HALF_OPEN = 1 << 8;
        /// Its packets wait until the application reads.
        const LAZY = 1 << 9;
        /// On the list of those that wait for a buffer.
        const PARKED = 1 << 10;
        /// The application has ended its direction while a file is being sent: after the file.
        const SHUTDOWN_AFTER_FILE = 1 << 11;
        /// The socket's data semantics, a number of three bits; see `semantics`.
        const SEMANTICS = 7 << 12;
    }
}

/// One connection of a shard.
///
/// All that a segment touches beside TCP's part lies in the first cache line: with many connections,
/// each line is a wait for memory.
#[repr(C, align(64))]
pub(crate) struct Conn {
    pub key: FlowKey,
    pub generation: u32,
    pub channel: Channel,
    pub peer_mac: [u8; 6],
    pub facts: Facts,
    /// The file transfer in progress.
    pub splice: u32,
    /// The listener that opened it.
    pub listener: u32,
    pub timer_at: Instant,
    /// The one wheel entry; it may fire earlier than TCP wants and is then put back.
    pub timer: Option<TimerId>,
    pub tcb: Tcb,
    pub read_waker: Option<Waker>,
    pub write_waker: Option<Waker>,
}

const _: () = assert!(std::mem::offset_of!(Conn, tcb) == 64);

impl Conn {
    /// Events that change more than the connection.
    pub const RARE_EVENTS: Events = Events::ESTABLISHED
        .union(Events::RESET)
        .union(Events::REFUSED)
        .union(Events::TIMED_OUT)
        .union(Events::CLOSED)
        .union(Events::TIME_WAIT);

    /// Makes sure that the wheel fires no later than TCP wants. Later deadlines move nothing: the
    /// entry fires early, finds nothing due, and is put where it belongs. So the usual case, a
    /// retransmission timer that each ACK pushes back, touches the wheel a few times a second.
    #[inline]
    pub fn rearm(&mut self, wheel: &mut TimerWheel, number: u32) {
        let at = self.tcb.deadline();
        if at < self.timer_at {
            self.move_timer(wheel, number, at);
        }
    }

    #[cold]
    fn move_timer(&mut self, wheel: &mut TimerWheel, number: u32, at: Instant) {
        if let Some(timer) = self.timer.take() {
            wheel.cancel(timer);
        }
        self.timer = wheel.insert(at, TOKEN_CONN | number);
        self.timer_at = at;
    }

    /// Acts on what TCP reported: wakes who waits, and has sent what is to be sent. Returns whether
    /// there is more to do that is not done to the connection alone.
    #[inline(always)]
    pub fn after_usual_events(
        &mut self,
        output: &mut VecDeque<u32>,
        wheel: &mut TimerWheel,
        number: u32,
        events: Events,
    ) -> bool {
        if events.intersects(Events::READABLE | Events::PEER_CLOSED)
            && self.facts.contains(Facts::READ_WAITING)
        {
            self.facts.remove(Facts::READ_WAITING);
            if let Some(waker) = &self.read_waker {
                waker.wake_by_ref();
            }
        }
        let progress = events.intersects(Events::WRITABLE | Events::ACKED);
        if progress && self.facts.contains(Facts::WRITE_WAITING) && self.splice == NONE {
            self.facts.remove(Facts::WRITE_WAITING);
            if let Some(waker) = &self.write_waker {
                waker.wake_by_ref();
            }
        }
        if events.contains(Events::TRANSMIT) {
            self.schedule_output(output, number);
        } else {
            self.rearm(wheel, number);
        }
        events.intersects(Self::RARE_EVENTS) || (progress && self.splice != NONE)
    }

    /// Whether packets wait until the application reads, which it does now.
    #[inline]
    pub fn waits_for_reader(&self) -> bool {
        self.facts.contains(Facts::LAZY) && !self.channel.is_empty()
    }

    /// Puts it on the list of those that wait for a buffer.
    pub fn park(&mut self, parked: &mut VecDeque<ConnId>, number: u32) {
        if !self.facts.contains(Facts::PARKED) {
            self.facts.insert(Facts::PARKED);
            parked.push_back(ConnId { number, generation: self.generation });
        }
    }

    /// Puts it on the list of those that want to send. Whoever is on that list has the timer set
    /// when its turn comes, so this is all there is to do after an action of the application.
    #[inline]
    pub fn schedule_output(&mut self, output: &mut VecDeque<u32>, number: u32) {
        if !self.facts.contains(Facts::IN_OUTPUT) {
            self.facts.insert(Facts::IN_OUTPUT);
            output.push_back(number);
        }
    }
}

/// Names a connection for as long as it lives; a stale name finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnId {
    pub number: u32,
    pub generation: u32,
}

/// All connections of a shard, by number.
pub(crate) struct Conns {
    slots: Vec<Option<Conn>>,
    free: Vec<u32>,
    /// Numbers of connections that ended on the list of those that want to send and still stand
    /// there, a bit each: whoever gets such a number has its place on the list, so that no number
    /// ever stands there twice.
    in_output: Box<[u64]>,
    max: usize,
    generation: u32,
}

impl Conns {
    pub fn new(max: usize) -> Self {
        let slots = Vec::with_capacity(max);
        advise_huge_pages(&slots);
        let in_output = vec![0; max.div_ceil(64)].into_boxed_slice();
        Self { slots, free: Vec::with_capacity(max), in_output, max, generation: 0 }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == self.max
    }

    #[inline]
    pub fn get(&self, number: u32) -> Option<&Conn> {
        self.slots.get(number as usize)?.as_ref()
    }

    #[inline]
    pub fn get_mut(&mut self, number: u32) -> Option<&mut Conn> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    /// Has all of a connection's record fetched that a segment will touch.
    #[inline(always)]
    pub fn prefetch(&self, number: u32) {
        if let Some(slot) = self.slots.get(number as usize) {
            prefetch(slot);
        }
    }

    /// The connection that `id` names, if it still lives.
    #[inline]
    pub fn named(&self, id: ConnId) -> Option<&Conn> {
        self.get(id.number).filter(|conn| conn.generation == id.generation)
    }

    /// The connection that `id` names, if it still lives.
    #[inline]
    pub fn named_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.get_mut(id.number).filter(|conn| conn.generation == id.generation)
    }

    /// Adds a connection; `None` if there are as many as may be.
    pub fn insert(&mut self, key: FlowKey, tcb: Tcb) -> Option<ConnId> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.slots.len() < self.max => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let in_output = self.leave_output(number);
        let facts = if in_output { Facts::IN_OUTPUT } else { Facts::empty() };
        self.slots[number as usize] = Some(Conn {
            key,
            peer_mac: [0; 6],
            facts,
            generation,
            channel: Channel::default(),
            listener: NONE,
            splice: NONE,
            timer: None,
            timer_at: Instant::FAR_FUTURE,
            read_waker: None,
            write_waker: None,
            tcb,
        });
        Some(ConnId { number, generation })
    }

    pub fn remove(&mut self, number: u32) -> Option<Conn> {
        let conn = self.slots.get_mut(number as usize)?.take()?;
        self.free.push(number);
        if conn.facts.contains(Facts::IN_OUTPUT)
            && let Some(word) = self.in_output.get_mut(number as usize / 64)
        {
            *word |= 1 << (number % 64);
        }
        Some(conn)
    }

    /// The place of a number on the list of those that want to send is taken over or given up.
    /// Returns whether it had one without a connection.
    pub fn leave_output(&mut self, number: u32) -> bool {
        let bit = 1 << (number % 64);
        let Some(word) = self.in_output.get_mut(number as usize / 64) else { return false };
        let had = *word & bit != 0;
        *word &= !bit;
        had
    }

    /// Bytes that a connection takes here.
    pub const fn bytes_each() -> usize {
        // The bit in `in_output` is less than one.
        size_of::<Option<Conn>>() + size_of::<u32>()
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_some()).map(|(i, _)| i as u32)
    }
}
