//! Connections in TIME_WAIT that no application holds: a small record each, in a table of its own,
//! so that the connection's place, buffers and slices are free at once.

use std::collections::VecDeque;

use millstream_tcp::{Segment, TimeWait, Verdict};
use millstream_timer::{Instant, TimerId};
use millstream_wire::tcp::{Flags, Header};

use crate::channel::Packet;
use crate::conn::{Facts, NONE};
use crate::flow::{FlowHasher, FlowKey, FlowTable};
use crate::pairs::Pairs;
use crate::state::{State, TOKEN_TIME_WAIT, env};

/// One connection in TIME_WAIT.
struct Record {
    until: Instant,
    key: FlowKey,
    tcp: TimeWait,
    mac: [u8; 6],
    /// A peer opened it, so a newer SYN may reopen it.
    passive: bool,
}

const _: () = assert!(size_of::<Option<Record>>() <= 64);

/// All of them. When there are as many as may be, the oldest makes way.
pub(crate) struct TimeWaits {
    slots: Vec<Option<Record>>,
    free: Vec<u32>,
    flows: FlowTable,
    /// Each slot in use once, oldest first; those whose wait began anew, or that are empty since a
    /// SYN has reopened them, are dealt with when they come to the front.
    order: VecDeque<u32>,
    max: usize,
    pub timer: Option<TimerId>,
    /// Records that made way for newer ones.
    pub recycled: u64,
}

impl TimeWaits {
    pub fn new(hasher: FlowHasher, max: usize) -> Self {
        Self {
            slots: Vec::with_capacity(max),
            free: Vec::with_capacity(max),
            flows: FlowTable::new(hasher, max),
            order: VecDeque::with_capacity(max),
            max,
            timer: None,
            recycled: 0,
        }
    }

    /// Records alive.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn contains(&self, key: &FlowKey) -> bool {
        self.find(key).is_some()
    }

    #[inline]
    fn find(&self, key: &FlowKey) -> Option<u32> {
        if self.flows.len() == 0 {
            return None;
        }
        self.flows.find(key, |slot| self.get(slot).is_some_and(|record| record.key == *key))
    }

    fn get(&self, slot: u32) -> Option<&Record> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Record> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Adds a record. Its key is held from now on.
    fn insert(&mut self, record: Record, pairs: &mut Pairs) {
        let key = record.key;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.max => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
            None => {
                let Some(oldest) = self.order.pop_front() else { return };
                self.recycled += u64::from(self.get(oldest).is_some());
                self.forget(oldest, pairs);
                oldest
            }
        };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(record);
            self.flows.insert(&key, slot);
            self.order.push_back(slot);
            if let Some(pair) = key.pair() {
                pairs.retain(pair);
            }
        }
    }

    /// Empties a slot, which stays in `order`.
    fn forget(&mut self, slot: u32, pairs: &mut Pairs) {
        if let Some(record) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.flows.remove(&record.key, slot);
            if let Some(pair) = record.key.pair() {
                pairs.release(pair);
            }
        }
    }

    /// Forgets those whose time is over; says when the next one's will be.
    fn expire(&mut self, now: Instant, pairs: &mut Pairs) -> Option<Instant> {
        while let Some(&slot) = self.order.front() {
            match self.get(slot).map(|record| record.until) {
                Some(until) if until > now && self.is_oldest(until) => return Some(until),
                Some(until) if until > now => {
                    self.order.rotate_left(1);
                }
                _ => {
                    self.forget(slot, pairs);
                    self.order.pop_front();
                    self.free.push(slot);
                }
            }
        }
        None
    }

    /// Whether nothing behind the front ends before `until`: waits are of one length, so the second
    /// tells. What was emptied in between is free.
    fn is_oldest(&mut self, until: Instant) -> bool {
        while let Some(&second) = self.order.get(1) {
            if let Some(record) = self.get(second) {
                return record.until >= until;
            }
            self.order.remove(1);
            self.free.push(second);
        }
        true
    }
}

impl State {
    /// If a connection is in TIME_WAIT and nobody holds it, keeps what must be known of it and frees
    /// the rest.
    pub fn compact_time_wait(&mut self, number: u32) -> bool {
        let Some(conn) = self.conns.get(number) else { return false };
        if conn.facts.contains(Facts::HELD) {
            return false;
        }
        let Some((tcp, until, ack_is_due)) = conn.tcb.to_time_wait() else { return false };
        let (key, mac, passive) = (conn.key, conn.peer_mac, conn.listener != NONE);
        self.retain_key(&key);
        self.remove_conn(number);
        if ack_is_due {
            self.answer_in_time_wait(&tcp, &key, mac);
        }
        self.time_waits.insert(Record { until, key, tcp, mac, passive }, &mut self.pairs);
        self.release_key(&key);
        if self.time_waits.timer.is_none() {
            self.time_waits.timer = self.wheel.insert(until, TOKEN_TIME_WAIT);
        }
        true
    }

    /// Takes a segment, if its connection is in TIME_WAIT.
    #[inline]
    pub fn time_wait_input(&mut self, key: &FlowKey, packet: &Packet) -> bool {
        match self.time_waits.find(key) {
            Some(slot) => self.time_wait_take(slot, key, packet),
            None => false,
        }
    }

    #[cold]
    fn time_wait_take(&mut self, slot: u32, key: &FlowKey, packet: &Packet) -> bool {
        if !self.check_segment(packet) {
            return true;
        }
        let l4 = packet.l4();
        let Ok((header, header_len)) = Header::parse(l4) else {
            self.rx.drop_malformed += 1;
            return true;
        };
        let payload_len = (l4.len() - header_len) as u32;
        let now = self.now;
        let until = now.plus_micros(self.tcp_config.time_wait_us);
        let Some(record) = self.time_waits.get_mut(slot) else { return false };
        let verdict = record.tcp.input(&mut env!(self), &header, payload_len);
        if verdict == Verdict::Reopen && record.passive && !header.flags.contains(Flags::FIN) {
            let tcp = record.tcp.clone();
            let isn = tcp.isn_beyond(self.isn_for(key).0);
            let number = self.listener_of(packet, key.local_port());
            self.retain_key(key);
            self.time_waits.forget(slot, &mut self.pairs);
            let listener = number.checked_sub(1).map(u32::from);
            let listener = listener.filter(|&number| {
                self.listener_mut(number).is_some_and(|listener| listener.takes(packet))
            });
            // At once, and not by way of the listener's channel, for as long as it is known what the
            // old one has used.
            if let Some(number) = listener {
                self.open_passively(number, packet, &header, key, Some(isn));
            }
            self.release_key(key);
            return listener.is_some();
        }
        self.rx.delivered_time_wait += 1;
        match verdict {
            Verdict::Ignore => return true,
            Verdict::Restart => record.until = until,
            Verdict::Answer | Verdict::Reopen => {}
        }
        let (tcp, mac) = (record.tcp.clone(), record.mac);
        self.answer_in_time_wait(&tcp, key, mac);
        true
    }

    fn answer_in_time_wait(&mut self, tcp: &TimeWait, key: &FlowKey, mac: [u8; 6]) {
        let mut ack = Segment::default();
        tcp.ack(&mut env!(self), &mut ack);
        self.send_reply(key, mac, &ack);
    }

    /// Ends what has waited long enough.
    pub fn fire_time_wait_timer(&mut self) {
        self.time_waits.timer = None;
        if let Some(next) = self.time_waits.expire(self.now, &mut self.pairs) {
            self.time_waits.timer = self.wheel.insert(next, TOKEN_TIME_WAIT);
        }
    }
}
