//! SYN cookies at a listener: when as many handshakes are under way as its backlog allows, SYNs are
//! answered without keeping anything (RFC 4987 section 3.6).

use millstream_tcp::Segment;
use millstream_wire::tcp::{Flags, Header};

use crate::channel::Packet;
use crate::config::SynCookiePolicy;
use crate::conn::Facts;
use crate::flow::FlowKey;
use crate::state::{State, env};

impl State {
    /// Whether a SYN to a listener is to be answered with a cookie.
    pub fn wants_cookie(&self, listener_is_full: bool) -> bool {
        match self.syn_cookies {
            SynCookiePolicy::Always => true,
            SynCookiePolicy::Auto => listener_is_full,
            SynCookiePolicy::Off => false,
        }
    }

    /// Answers a SYN with a cookie.
    #[cold]
    pub fn answer_with_cookie(&mut self, packet: &Packet, syn: &Header<'_>, key: &FlowKey) {
        let (_, ts_offset) = self.isn_for(key);
        let mss = self.mss(key);
        let names = self.endpoints(key);
        let mut answer = Segment::default();
        self.cookies.answer(&mut env!(self), names, ts_offset, mss, syn, &mut answer);
        self.rx.answered_with_cookie += 1;
        self.metrics.syn_cookies_sent += 1;
        self.send_reply(key, packet.source_mac(), &answer);
    }

    /// Opens a connection if an ACK brings back a cookie. `false`: it does not.
    #[cold]
    pub fn accept_cookie(
        &mut self,
        number: u32,
        packet: &Packet,
        header: &Header<'_>,
        header_len: usize,
        key: &FlowKey,
    ) -> bool {
        if !header.flags.contains(Flags::ACK) || !self.cookies.may_come(self.now) {
            return false;
        }
        let Some(listener) = self.listener_mut(number) else { return false };
        // Without room nothing is said: the peer sends its data again.
        if listener.accept.len() >= listener.backlog {
            self.rx.drop_backlog_full += 1;
            return true;
        }
        if self.conns.is_full() {
            self.rx.drop_connections_exhausted += 1;
            return true;
        }
        let mut header = *header;
        let is_more_than_ack = packet.l4().len() > header_len || header.flags.contains(Flags::FIN);
        let mut payload = (packet.l4().len() > header_len).then(|| {
            let start = usize::from(packet.l4_offset) + header_len;
            packet.frame.slice(start..usize::from(packet.end))
        });
        if self.rx_scarce && payload.take().is_some() {
            // The link's buffers are few: the peer will send it again, and the FIN behind it.
            header.flags.remove(Flags::FIN);
        }
        let (_, ts_offset) = self.isn_for(key);
        let mss = self.mss(key);
        let names = self.endpoints(key);
        let mut env = env!(self);
        let accepted = self.cookies.accept(&mut env, names, ts_offset, mss, &header, payload);
        let Some((tcb, events)) = accepted else {
            self.metrics.syn_cookies_rejected += 1;
            // What stands behind the first byte does not tell its connection. It may have overtaken
            // the segment that does, and a reset would end what is yet to begin; so it gets no
            // answer, as if it were lost.
            self.rx.drop_before_cookie += u64::from(is_more_than_ack);
            return is_more_than_ack;
        };
        let Some(id) = self.conns.insert(*key, tcb) else { return true };
        self.retain_key(key);
        if let Some(conn) = self.conns.named_mut(id) {
            conn.listener = number;
            conn.peer_mac = packet.source_mac();
            conn.facts.insert(Facts::HAS_MAC);
        }
        self.flows.insert(key, id.number);
        self.rx.delivered_tcp += 1;
        self.metrics.syn_cookies_accepted += 1;
        self.after_events(id.number, events);
        true
    }
}
