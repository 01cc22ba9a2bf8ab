//! The end: closing, aborting, and errors from the network.

use millstream_timer::Instant;
use millstream_wire::tcp::SeqNumber;

use crate::slab::{NIL, SliceSlab};
use crate::state::{ConnectionError, Events, State};
use crate::tcb::{Env, Facts, Marks, Tcb};

/// An ICMP error about a segment of a connection (RFC 9293 section 3.9.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Protocol or port unreachable, or forbidden: codes 2 to 4 less fragmentation needed.
    Hard,
    /// Network or host unreachable, time exceeded, bad parameter.
    Soft,
}

impl Tcb {
    /// Closes this side (RFC 9293 section 3.10.4): a FIN follows what is queued. The other side may
    /// go on sending, and what it sends may be read.
    pub fn close(&mut self, env: &mut Env<'_>) {
        match self.state {
            State::SynSent => self.finish(env, None),
            // The FIN waits for the handshake.
            State::SynReceived => self.facts.insert(Facts::FIN_QUEUED),
            State::Established => self.begin_close(State::FinWait1),
            State::CloseWait => self.begin_close(State::LastAck),
            _ => return,
        }
        self.facts.remove(Facts::MORE | Facts::CORK);
        self.marks.remove(Marks::CONTINUED);
        self.become_orphan(env);
        self.arm_persist_if_stalled(env);
    }

    /// Once retransmission decides how long the connection lasts, keep-alive has nothing to do: its
    /// timer is that of orphans.
    fn become_orphan(&mut self, env: &Env<'_>) {
        if self.is_orphan() {
            self.idle_at = Instant::FAR_FUTURE;
            self.bound_orphan(env);
        }
    }

    fn begin_close(&mut self, state: State) {
        self.facts.insert(Facts::FIN_QUEUED);
        self.state = state;
    }

    /// Says that nobody will read any more. What is unread is lost, and if there is any, or if more
    /// comes, the peer is told by a reset (RFC 9293 section 3.6.1, RFC 2525 section 2.17). FIN-WAIT-2
    /// is bounded in time from now on, and, once this side has closed, so is a closed window of the
    /// peer.
    pub fn detach(&mut self, env: &mut Env<'_>) {
        let detached = self.facts.contains(Facts::DETACHED);
        self.facts.insert(Facts::DETACHED);
        if self.receive_queue.bytes > 0 && self.state != State::Closed {
            self.abort(env);
            return;
        }
        if self.state == State::FinWait2 {
            self.idle_at = env.now.plus_micros(env.config.fin_wait_2_us);
        }
        if !detached {
            self.become_orphan(env);
        }
    }

    /// Ends the connection at once (RFC 9293 section 3.10.5). The reset goes out with the next
    /// [`Tcb::transmit`].
    #[cold]
    pub fn abort(&mut self, env: &mut Env<'_>) {
        let synchronised = !matches!(
            self.state,
            State::Closed | State::SynSent | State::Closing | State::LastAck | State::TimeWait
        );
        if self.state == State::Closed {
            return;
        }
        self.finish(env, Some(ConnectionError::Aborted));
        if synchronised {
            self.facts.insert(Facts::TX_RESET);
        }
    }

    /// Becomes [`State::Closed`]: frees what was to be sent and what came ahead of order, and, after
    /// an error, what is unread.
    #[cold]
    pub(crate) fn finish(&mut self, env: &mut Env<'_>, error: Option<ConnectionError>) {
        self.state = State::Closed;
        if error.is_some() {
            self.error = error;
            if self.receive_queue.bytes > 0 {
                // Part of the stream is lost with it: the reader must not take this for its end.
                self.facts.remove(Facts::RCV_FIN);
            }
            self.receive_queue.clear(env.slices);
        }
        self.send_queue.clear(env.slices);
        self.reassembly.clear(env.slices);
        self.facts.remove(
            Facts::TX_ANY | Facts::OUT_OF_ORDER | Facts::DSACK | Facts::PERSIST | Facts::TIMING,
        );
        self.close_flight(env);
        self.retransmit_at = Instant::FAR_FUTURE;
        self.ack_at = Instant::FAR_FUTURE;
        self.idle_at = Instant::FAR_FUTURE;
    }

    /// Both sides are done; the record stays until old segments are gone (RFC 9293 section 3.6.2).
    pub(crate) fn enter_time_wait(&mut self, env: &mut Env<'_>) -> Events {
        self.state = State::TimeWait;
        self.send_queue.clear(env.slices);
        self.reassembly.clear(env.slices);
        self.facts.remove(Facts::OUT_OF_ORDER | Facts::PERSIST);
        self.close_flight(env);
        self.retransmit_at = Instant::FAR_FUTURE;
        self.idle_at = env.now.plus_micros(env.config.time_wait_us);
        Events::TIME_WAIT
    }

    /// Frees every slice. To be called before the record is dropped, whatever its state.
    pub fn release(&mut self, slices: &mut SliceSlab) {
        self.send_queue.clear(slices);
        self.receive_queue.clear(slices);
        self.reassembly.clear(slices);
        slices.flights.close(self.flight);
        self.flight = NIL;
        self.left_out = 0;
        self.facts.remove(Facts::TX_ANY | Facts::TX_LOST | Facts::OUT_OF_ORDER);
        self.state = State::Closed;
    }

    /// An ICMP error that quotes a segment of this connection with the number `seq`.
    ///
    /// It counts only if such a segment is in flight (RFC 5927 section 4.1), and only before the
    /// connection is synchronised does a hard one end it (RFC 5927 section 5.2): anybody can send
    /// one.
    #[cold]
    pub fn icmp_unreachable(
        &mut self,
        env: &mut Env<'_>,
        seq: SeqNumber,
        kind: Unreachable,
    ) -> Events {
        if self.state == State::Closed || seq.lt(self.snd_una) || seq.ge(self.snd_max) {
            return Events::empty();
        }
        if kind == Unreachable::Hard && self.state == State::SynSent {
            env.stats.icmp_hard += 1;
            self.finish(env, Some(ConnectionError::Refused));
            return Events::REFUSED | Events::CLOSED;
        }
        env.stats.icmp_soft += 1;
        self.marks.insert(Marks::SOFT_ERROR);
        Events::empty()
    }

    /// Whether an ICMP error was noted since data was last acknowledged: a hint for whoever is told
    /// that the connection timed out.
    pub fn had_soft_error(&self) -> bool {
        self.marks.contains(Marks::SOFT_ERROR)
    }
}
