//! Stations that packets go to: next hops, their link addresses, and who waits for one.

use std::net::IpAddr;

use millstream_timer::Instant;

use crate::autoconf::Host;
use crate::conn::{ConnId, Facts, NONE};
use crate::flow::FlowKey;
use crate::neighbor::{Lookup, Solicit};
use crate::output::{RawFrame, Via};
use crate::state::{State, TOKEN_LINK, env};

impl State {
    /// Looks up the link address of a neighbour that is about to be sent to, and asks for it if that
    /// is due.
    pub fn resolve(&mut self, ip: IpAddr) -> Lookup {
        let found = self.neighbors.lookup(ip, self.now);
        if found == Lookup::Ask {
            self.solicit(Solicit { ip, station: None });
        }
        self.rearm_link_timer();
        found
    }

    /// Sees to it that what is due for neighbours, addresses and fragments is done.
    pub fn rearm_link_timer(&mut self) {
        let host = self.station.ipv6.as_deref();
        let at = self
            .neighbors
            .next_deadline()
            .min(self.waiting.next_deadline())
            .min(self.reassembly.next_deadline())
            .min(host.map_or(Instant::FAR_FUTURE, Host::next_deadline));
        if at < self.link_timer_at {
            if let Some(timer) = self.link_timer.take() {
                self.wheel.cancel(timer);
            }
            self.link_timer = self.wheel.insert(at, TOKEN_LINK);
            self.link_timer_at = at;
        }
    }

    fn solicit(&mut self, solicit: Solicit) {
        match solicit.ip {
            IpAddr::V4(ip) => self.send_arp_request(ip, solicit.station),
            IpAddr::V6(ip) => self.solicit_neighbor(ip, solicit.station),
        }
    }

    /// Finds the next hop's address for a connection that wants to send for the first time.
    pub fn resolve_conn(&mut self, number: u32) {
        let Some(conn) = self.conns.get(number) else { return };
        let id = ConnId { number, generation: conn.generation };
        let waits = conn.facts.contains(Facts::AWAITS_NEIGHBOR);
        let found = match self.next_hop_of(&conn.key) {
            Some(next_hop) => self.resolve(next_hop),
            None => Lookup::Unreachable,
        };
        let Some(conn) = self.conns.get_mut(number) else { return };
        match found {
            Lookup::Ask | Lookup::Wait | Lookup::Full if waits => {}
            Lookup::Ask | Lookup::Wait | Lookup::Full => {
                conn.facts.insert(Facts::AWAITS_NEIGHBOR);
                self.await_neighbor(id);
            }
            Lookup::Known(mac) => {
                conn.facts.remove(Facts::AWAITS_NEIGHBOR);
                conn.facts.insert(Facts::HAS_MAC);
                conn.peer_mac = mac;
                self.schedule_output(number);
            }
            Lookup::Unreachable => {
                conn.facts.remove(Facts::AWAITS_NEIGHBOR);
                conn.tcb.abort(&mut env!(self));
                self.wake_both(number);
                self.conn_closed(number);
            }
        }
    }

    /// The neighbour to which a connection's segments go.
    fn next_hop_of(&self, key: &FlowKey) -> Option<IpAddr> {
        match self.pairs.addresses(key) {
            Some((_, remote)) => self.next_hop_v6(remote),
            None => self.station.ipv4.next_hop(key.remote()).map(IpAddr::V4),
        }
    }

    /// Nothing comes back from the peer of a connection: another station may have its address, or the
    /// router's, by now (RFC 1122 section 2.3.2.1, RFC 4861 section 7.3). While nothing better is
    /// known, it stays with the station that it has.
    #[cold]
    pub fn renew_station(&mut self, number: u32) {
        let Some(conn) = self.conns.get(number) else { return };
        if !conn.facts.contains(Facts::HAS_MAC) {
            return;
        }
        // For a peer that has proved nothing yet nobody is asked: it may be made up.
        let asks = conn.listener == NONE || conn.facts.contains(Facts::ESTABLISHED);
        let Some(next_hop) = self.next_hop_of(&conn.key) else { return };
        let mac = if asks {
            match self.resolve(next_hop) {
                Lookup::Known(mac) => Some(mac),
                _ => None,
            }
        } else {
            self.neighbors.known(next_hop)
        };
        if let Some(conn) = self.conns.get_mut(number)
            && let Some(mac) = mac
        {
            conn.peer_mac = mac;
        }
    }

    /// Puts a connection on the list of those that wait for a neighbour; its length is bounded by
    /// dropping the names of those that have ended.
    fn await_neighbor(&mut self, id: ConnId) {
        if self.awaiting_neighbor.len() == self.awaiting_neighbor.capacity() {
            let conns = &self.conns;
            self.awaiting_neighbor.retain(|&id| conns.named(id).is_some());
        }
        self.awaiting_neighbor.push(id);
    }

    /// A neighbour told its address: sends what waits for it.
    pub fn neighbor_changed(&mut self, ip: IpAddr) {
        if let Some(mac) = self.neighbors.known(ip) {
            while let Some(frame) = self.waiting.pop(ip) {
                self.queue_raw(RawFrame { via: Via::Station(mac), ..frame });
            }
        }
        self.retry_conns();
    }

    /// Tries again for all connections that wait for a neighbour's address.
    fn retry_conns(&mut self) {
        // Nothing joins the list meanwhile, and its memory stays.
        let mut waiting = std::mem::take(&mut self.awaiting_neighbor);
        for id in waiting.drain(..) {
            if let Some(conn) = self.conns.named_mut(id) {
                conn.facts.remove(Facts::AWAITS_NEIGHBOR);
                self.schedule_output(id.number);
            }
        }
        self.awaiting_neighbor = waiting;
    }

    /// Drops packets that have waited too long, and those whose neighbour has been given up.
    fn expire_waiting(&mut self) {
        while self.waiting.expire(self.now).is_some() {
            self.metrics.drop_other_out += 1;
        }
        let mut at = 0;
        while let Some(ip) = self.waiting.neighbor_of(at) {
            if self.neighbors.is_asked(ip) {
                at += 1;
                continue;
            }
            while self.waiting.pop(ip).is_some() {
                self.metrics.drop_other_out += 1;
            }
        }
    }

    pub fn fire_link_timer(&mut self) {
        self.link_timer = None;
        self.link_timer_at = Instant::FAR_FUTURE;
        while let Some(solicit) = self.neighbors.poll(self.now) {
            self.solicit(solicit);
        }
        self.poll_host();
        self.expire_fragments();
        self.expire_waiting();
        self.rearm_link_timer();
        self.retry_conns();
    }
}
