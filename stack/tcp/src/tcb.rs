//! The record of a connection.

use millstream_timer::Instant;
use millstream_wire::tcp::SeqNumber;

use crate::config::Config;
use crate::congestion::{Algorithm, Congestion, Controller, Window};
use crate::pacing::Pacer;
use crate::receive_queue::{Reassembly, ReceiveQueue};
use crate::recovery::{CongestionState, DUPLICATE_THRESHOLD, count_segments};
use crate::rtt::RttEstimator;
use crate::send_queue::SendQueue;
use crate::slab::{NIL, SliceSlab};
use crate::state::{ConnectionError, State};
use crate::stats::TcpStats;

/// What the connections of a shard share, lent to each call.
#[derive(Debug)]
pub struct Env<'a> {
    /// The moment.
    pub now: Instant,
    /// What is set.
    pub config: &'a Config,
    /// The slab that holds the slices of all connections. Always the same one for a connection.
    pub slices: &'a mut SliceSlab,
    /// The counters.
    pub stats: &'a mut TcpStats,
}

impl Env<'_> {
    /// Microseconds, modulo 2^32: for spans below an hour.
    #[inline]
    pub(crate) fn now_us(&self) -> u32 {
        self.now.as_micros() as u32
    }

    /// Units of 64 ns, modulo 2^32: for spans below four minutes.
    #[inline]
    pub(crate) fn now_64ns(&self) -> u32 {
        (self.now.as_nanos() >> 6) as u32
    }

    /// Ticks of 2^20 ns, modulo 2^32: for spans below 24 days, and the clock of timestamps. RFC
    /// 7323 section 5.4 wants ticks between 1 ms and 1 s; these are 1.05 ms and cost one shift.
    #[inline]
    pub(crate) fn now_ticks(&self) -> u32 {
        (self.now.as_nanos() >> 20) as u32
    }
}

/// Nanoseconds in a tick of the timestamp clock.
pub(crate) const TICK_NANOS: u64 = 1 << 20;

bitflags::bitflags! {
    /// Facts about a connection, in one word so that the fast path tests many of them at once.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Facts: u32 {
        /// Timestamps are in use (before the handshake is done: offered).
        const TIMESTAMPS = 1 << 0;
        /// Data is sent as ECN-capable (RFC 3168): the bit is that of the codepoint.
        const ECN = 1 << 1;
        /// Window scaling is in use.
        const WINDOW_SCALE = 1 << 2;
        const NODELAY = 1 << 3;
        /// Less than a full segment waits until this is taken back.
        const CORK = 1 << 4;
        /// As `CORK`, until the next slice is queued.
        const MORE = 1 << 5;
        const KEEPALIVE = 1 << 6;
        /// The peer's window holds data back.
        const WINDOW_LIMITED = 1 << 7;
        /// The application has closed: a FIN follows what is queued.
        const FIN_QUEUED = 1 << 8;
        /// `rcv_fin` is where the peer's FIN stands.
        const RCV_FIN_KNOWN = 1 << 9;
        /// The peer's FIN was taken in order.
        const RCV_FIN = 1 << 10;
        /// A segment is being timed.
        const TIMING = 1 << 11;
        /// Something is being repaired, or may have to be: what is in flight is not just what was
        /// sent and not acknowledged.
        const REPAIR = 1 << 12;
        /// The retransmission timer is the persist timer.
        const PERSIST = 1 << 13;
        /// The congestion controller wants to hear of every ACK.
        const EVERY_ACK = 1 << 14;
        /// The application reads no more.
        const DETACHED = 1 << 15;
        /// Reassembly holds something.
        const OUT_OF_ORDER = 1 << 16;
        /// `dsack` is to be reported.
        const DSACK = 1 << 17;
        /// To be sent: a segment larger than those that are known to pass.
        const TX_LARGER = 1 << 18;
        /// The application was told that the record is done.
        const TOLD_CLOSED = 1 << 19;
        /// Selective acknowledgements are in use.
        const SACK = 1 << 20;
        /// ACKs carry ECE.
        const ECHO = 1 << 21;
        /// To be sent with the next new data: CWR.
        const CWR_DUE = 1 << 22;
        /// Segments are clocked out at a rate.
        const PACED = 1 << 23;

        /// To be sent: an ACK.
        const TX_ACK = 1 << 24;
        /// To be sent: a SYN, or a SYN-ACK.
        const TX_SYN = 1 << 25;
        /// To be sent out of turn: a probe for a lost tail, or the oldest segment again.
        const TX_AGAIN = 1 << 26;
        /// To be sent: a reset that ends this connection.
        const TX_RESET = 1 << 27;
        /// To be sent: a reset that answers a segment and leaves this connection alone.
        const TX_REPLY = 1 << 28;
        /// To be sent: a zero-window probe, or what the override time-out lets go.
        const TX_PROBE = 1 << 29;
        /// To be sent: a keep-alive question.
        const TX_KEEPALIVE = 1 << 30;
        /// To be sent again, as the window allows: what is lost.
        const TX_LOST = 1 << 31;

        /// What header prediction cannot deal with.
        const SLOW = Self::REPAIR.bits() | Self::PERSIST.bits() | Self::OUT_OF_ORDER.bits()
            | Self::DETACHED.bits() | Self::RCV_FIN_KNOWN.bits() | Self::ECHO.bits()
            | Self::MORE.bits();
        /// What the straight path of `transmit` cannot deal with.
        const SLOW_TRANSMIT = Self::TX_SPECIAL.bits() | Self::OUT_OF_ORDER.bits()
            | Self::DSACK.bits() | Self::PERSIST.bits() | Self::FIN_QUEUED.bits()
            | Self::CORK.bits() | Self::MORE.bits() | Self::REPAIR.bits()
            | Self::ECHO.bits() | Self::CWR_DUE.bits() | Self::PACED.bits()
            | Self::WINDOW_LIMITED.bits();
        /// All that is sent other than new data and ACKs.
        const TX_SPECIAL = Self::TX_SYN.bits() | Self::TX_AGAIN.bits() | Self::TX_RESET.bits()
            | Self::TX_REPLY.bits() | Self::TX_PROBE.bits() | Self::TX_KEEPALIVE.bits()
            | Self::TX_LARGER.bits();
        const TX_ANY = Self::TX_ACK.bits() | Self::TX_SPECIAL.bits();
    }
}

bitflags::bitflags! {
    /// Facts that only the slower paths look at.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Marks: u16 {
        /// The path is known to reorder (RFC 8985 section 6.2, step 3).
        const REORDERED = 1;
        /// The timer tells when more is known about losses.
        const REO_TIMER = 1 << 1;
        /// A probe for a lost tail is out.
        const PROBED = 1 << 2;
        /// The peer holds back ACKs for longer than most.
        const PATIENT = 1 << 3;
        /// New data goes before what is lost (RFC 5682 section 2.1, step 2).
        const NEW_FIRST = 1 << 4;
        /// What is to be sent waits for its moment: see `pacing.rs`.
        const PACE_WAIT = 1 << 5;
        /// What was queued last was said to go on: it does not end with PSH.
        const CONTINUED = 1 << 6;
        /// What is queued goes out once although `Facts::CORK` is set.
        const FLUSH = 1 << 7;
        /// The SYN asks for ECN, or the SYN-ACK agrees to it.
        const ECN_SYN = 1 << 8;
        /// Marks are echoed exactly (RFC 8257).
        const DCTCP = 1 << 9;
        /// The segment being taken met congestion.
        const CE = 1 << 10;
        /// The last data segment met congestion.
        const CE_STATE = 1 << 11;
        /// The segment at `reply_seq` that is to be sent is an ACK, not a reset.
        const REPLY_IS_ACK = 1 << 12;
        /// This side opened; counts until the handshake is done.
        const ACTIVE = 1 << 13;
        /// Some of what was sent may have been let go of. The bit is that of `ACTIVE`, which counts no
        /// more by then: at worst somebody looks in vain.
        const VOIDS = Self::ACTIVE.bits();
        /// The link takes nothing of what waits, and nothing is in flight.
        const LINK_WAIT = 1 << 14;
        /// An ICMP error was noted.
        const SOFT_ERROR = 1 << 15;
    }
}

/// One connection: its protocol state, and nothing else.
///
/// The first cache line is what header prediction and the choice of what to send read; the second
/// is written when data moves. Timers are moments, and setting one is a store: nobody need be told
/// of a later deadline, see [`Tcb::deadline`].
#[repr(C, align(32))]
#[derive(Debug)]
pub struct Tcb {
    // First cache line.
    pub(crate) facts: Facts,
    pub(crate) state: State,
    pub(crate) snd_scale: u8,
    pub(crate) rcv_scale: u8,
    pub(crate) ca_state: CongestionState,
    /// Oldest number that is not acknowledged.
    pub(crate) snd_una: SeqNumber,
    /// Next number to send: `snd_max`, unless that counts a window probe.
    pub(crate) snd_nxt: SeqNumber,
    /// Behind the highest number ever sent.
    pub(crate) snd_max: SeqNumber,
    /// Behind the last byte queued: where the FIN stands, or would.
    pub(crate) snd_end: SeqNumber,
    /// The peer's window in bytes.
    pub(crate) snd_wnd: u32,
    pub(crate) snd_wl1: SeqNumber,
    /// Numbers that are out but not in flight: see [`Tcb::pipe`].
    pub(crate) left_out: u32,
    /// Next number wanted.
    pub(crate) rcv_nxt: SeqNumber,
    /// Behind the last number that a window announced has allowed. Never goes back.
    pub(crate) rcv_adv: SeqNumber,
    pub(crate) last_ack_sent: SeqNumber,
    pub(crate) ts_recent: u32,
    pub(crate) ts_offset: u32,
    pub(crate) window: Window,

    // Second cache line.
    /// Retransmission, or persist, timer.
    pub(crate) retransmit_at: Instant,
    /// Delayed-ACK timer.
    pub(crate) ack_at: Instant,
    /// Stream bytes acknowledged since the connection was opened.
    pub(crate) acked_total: u64,
    pub(crate) receive_queue: ReceiveQueue,
    pub(crate) send_queue: SendQueue,
    /// Most payload of a segment sent, less timestamps.
    pub(crate) mss: u16,
    /// Largest payload received: what "full-sized" means in RFC 9293 section 3.8.6.3.
    pub(crate) rcv_mss: u16,
    /// When something last came, in ticks.
    pub(crate) last_recv_ticks: u32,
    /// When data was last sent, in ticks.
    pub(crate) last_send_ticks: u32,

    // Third cache line.
    pub(crate) rtt: RttEstimator,
    /// When data was last sent that no record stands for, in units of 64 ns.
    pub(crate) sent_64ns: u32,
    /// What is known about the data in flight, [`NIL`] if nothing beyond this record.
    pub(crate) flight: u32,
    /// How long a lone segment is waited for before it is sent again, in microseconds.
    pub(crate) lone_timeout_us: u32,
    /// Bytes of the burst that is being sent.
    pub(crate) burst_bytes: u32,
    /// Largest window that the peer has announced.
    pub(crate) snd_wnd_max: u32,
    /// ACKs still to be sent at once.
    pub(crate) quick_acks: u8,
    /// Doublings of the time-out.
    pub(crate) backoff: u8,
    /// Time-outs, or window probes, without an answer.
    pub(crate) retries: u8,
    /// Keep-alive questions without an answer.
    pub(crate) keepalive_probes: u8,
    /// The link's limit on segments, payload and options.
    pub(crate) mss_limit: u16,
    pub(crate) error: Option<ConnectionError>,
    /// Challenges sent in that second.
    pub(crate) challenges: u8,
    pub(crate) congestion: Congestion,
    /// Keep-alive, FIN-WAIT-2, TIME-WAIT or orphan timer.
    pub(crate) idle_at: Instant,

    // The rest is for what goes wrong, and for the beginning and the end.
    pub(crate) reassembly: Reassembly,
    /// The peer's initial number.
    pub(crate) rcv_isn: SeqNumber,
    /// Number of the peer's FIN.
    pub(crate) rcv_fin: SeqNumber,
    /// Number of the reset that answers a segment.
    pub(crate) reply_seq: SeqNumber,
    /// Bytes that came twice.
    pub(crate) dsack: (SeqNumber, SeqNumber),
    /// When progress stopped, in ticks.
    pub(crate) stalled_ticks: u32,
    pub(crate) retransmits: u32,
    /// When the second began in which challenges are counted, in ticks.
    pub(crate) challenge_ticks: u16,
    /// Segments of which duplicates were reported.
    pub(crate) dsacks: u16,
    /// The reordering window in steps of a quarter of the least round-trip time, and how many
    /// recoveries it is kept for.
    pub(crate) reo_steps: u8,
    pub(crate) reo_persist: u8,
    /// Segments that the path reorders over.
    pub(crate) reordering: u16,
    pub(crate) marks: Marks,
    /// When the least round-trip time was measured, in 2^12 ticks.
    pub(crate) min_rtt_epoch: u16,
    pub(crate) min_rtt_us: u32,
    /// How fast the network delivers, in KiB a second.
    pub(crate) delivery_kib_per_s: u32,
    /// There if `Facts::PACED`.
    pub(crate) pacer: Option<Box<Pacer>>,
    /// The user time-out in milliseconds; 0: as configured.
    pub(crate) user_timeout_ms: u32,
    /// The receive buffer in bytes, and what the application read when: see `buffers.rs`.
    pub(crate) recv_buf_bytes: u32,
    pub(crate) tune_seq: SeqNumber,
    pub(crate) tune_bytes: u32,
    pub(crate) tune_ticks: u16,
    /// Times of a sender, see `times.rs`: ticks and when they began to count.
    pub(crate) limited_since_ticks: u16,
    pub(crate) limited_ticks: u32,
    pub(crate) busy_ticks: u32,
    pub(crate) busy_since_ticks: u32,
}

const _: () = assert!(std::mem::size_of::<Tcb>() <= 288);
const _: () = assert!(std::mem::offset_of!(Tcb, retransmit_at) == 64);
const _: () = assert!(Facts::ECN.bits() == crate::ecn::ECT_0 as u32);
const _: () = assert!(std::mem::offset_of!(Tcb, rtt) == 128);
const _: () = assert!(std::mem::offset_of!(Tcb, idle_at) < 192);

/// What a connection looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpInfo {
    /// Where it stands.
    pub state: State,
    /// Smoothed round-trip time in microseconds; 0 before the first sample.
    pub srtt_us: u32,
    /// Its variation in microseconds.
    pub rttvar_us: u32,
    /// Retransmission time-out in microseconds, not backed off.
    pub rto_us: u32,
    /// Doublings of the time-out at the moment.
    pub backoff: u8,
    /// Its congestion controller.
    pub congestion: Algorithm,
    /// Congestion window in bytes.
    pub cwnd_bytes: u32,
    /// Slow-start threshold in bytes.
    pub ssthresh_bytes: u32,
    /// Bytes in flight: sent, and neither acknowledged in any way nor lost.
    pub flight_bytes: u32,
    /// Whether a loss is being repaired.
    pub in_recovery: bool,
    /// What the sender makes of the ACKs that come in.
    pub ca_state: CongestionState,
    /// The peer's window in bytes.
    pub snd_wnd_bytes: u32,
    /// The largest window that the peer has ever had, in bytes.
    pub snd_wnd_max_bytes: u32,
    /// The window that the peer may still fill, in bytes.
    pub rcv_wnd_bytes: u32,
    /// Most payload of a segment sent.
    pub mss_bytes: u16,
    /// Segments sent again.
    pub retransmits: u32,
    /// Of the segments in flight, how many the peer has beyond what it acknowledged cumulatively;
    /// how many are lost; how many were sent again; and how many there are.
    pub sacked: u32,
    /// See [`Self::sacked`].
    pub lost: u32,
    /// See [`Self::sacked`].
    pub retrans: u32,
    /// See [`Self::sacked`].
    pub unacked: u32,
    /// Segments that the path is taken to reorder over.
    pub reordering: u16,
    /// Least round-trip time in microseconds; 0 before the first sample.
    pub min_rtt_us: u32,
    /// How fast the network last delivered, in bytes a second.
    pub delivery_rate: u64,
    /// How fast segments are clocked out, or would be, in bytes a second; 0: not known yet.
    pub pacing_rate: u64,
    /// Whether explicit congestion notification is in use.
    pub ecn: bool,
    /// The receive buffer in bytes.
    pub recv_buffer_bytes: u32,
    /// Largest segment received, in bytes.
    pub rcv_mss_bytes: u16,
    /// The link's limit on segments, payload and options, as it was told to the peer.
    pub mss_limit_bytes: u16,
    /// Questions about a closed window without an answer, or attempts on a link that takes nothing.
    pub probes: u8,
    /// Stream bytes received in order, modulo 2^32.
    pub bytes_received: u32,
    /// Whether timestamps are in use.
    pub timestamps: bool,
    /// Whether selective acknowledgements are in use.
    pub sack: bool,
    /// Whether window scaling is in use.
    pub window_scale: bool,
    /// Shift of the peer's windows.
    pub snd_scale: u8,
    /// Shift of this side's windows.
    pub rcv_scale: u8,
}

impl Tcb {
    /// A record with nothing in it but the numbers it begins with.
    pub(crate) fn new(
        env: &Env<'_>,
        state: State,
        isn: SeqNumber,
        ts_offset: u32,
        mss_limit: u16,
    ) -> Self {
        let config = env.config;
        let mut facts = Facts::TX_SYN;
        facts.set(Facts::TIMESTAMPS, config.timestamps);
        facts.set(Facts::SACK, config.sack);
        facts.set(Facts::WINDOW_SCALE, config.window_scaling);
        facts.set(Facts::NODELAY, !config.nagle);
        facts.set(Facts::KEEPALIVE, config.keepalive.is_some());
        let mss_limit = mss_limit.max(MSS_MIN);
        let ticks = env.now_ticks();
        Self {
            facts,
            state,
            snd_scale: 0,
            rcv_scale: if config.window_scaling { config.window_scale() } else { 0 },
            ca_state: CongestionState::Open,
            snd_una: isn,
            snd_nxt: isn,
            snd_max: isn,
            snd_end: isn + 1,
            snd_wnd: 0,
            snd_wl1: SeqNumber(0),
            left_out: 0,
            rcv_nxt: SeqNumber(0),
            rcv_adv: SeqNumber(0),
            last_ack_sent: SeqNumber(0),
            ts_recent: 0,
            ts_offset,
            window: Window { cwnd: 0, ssthresh: u32::MAX },
            retransmit_at: Instant::FAR_FUTURE,
            ack_at: Instant::FAR_FUTURE,
            acked_total: 0,
            receive_queue: ReceiveQueue::EMPTY,
            send_queue: SendQueue::EMPTY,
            mss: MSS_DEFAULT.min(mss_limit),
            rcv_mss: MSS_DEFAULT.min(mss_limit),
            last_recv_ticks: ticks,
            last_send_ticks: ticks,
            rtt: RttEstimator::new(config),
            sent_64ns: 0,
            flight: NIL,
            lone_timeout_us: config.initial_rto_us.max(1),
            burst_bytes: 0,
            snd_wnd_max: 0,
            quick_acks: config.quick_acks,
            backoff: 0,
            retries: 0,
            keepalive_probes: 0,
            congestion: Congestion::new(config.congestion, config.growth_segments()),
            idle_at: Instant::FAR_FUTURE,
            reassembly: Reassembly::EMPTY,
            rcv_isn: SeqNumber(0),
            rcv_fin: SeqNumber(0),
            reply_seq: SeqNumber(0),
            dsack: (SeqNumber(0), SeqNumber(0)),
            stalled_ticks: ticks,
            challenge_ticks: ticks as u16,
            retransmits: 0,
            dsacks: 0,
            reo_steps: 1,
            reo_persist: 0,
            reordering: DUPLICATE_THRESHOLD,
            marks: Marks::empty(),
            min_rtt_us: 0,
            min_rtt_epoch: (ticks >> 12) as u16,
            delivery_kib_per_s: 0,
            pacer: None,
            user_timeout_ms: 0,
            recv_buf_bytes: config.recv_buffer_bytes.min(1 << 30),
            tune_seq: SeqNumber(0),
            tune_bytes: 0,
            tune_ticks: 0,
            limited_since_ticks: 0,
            limited_ticks: 0,
            busy_ticks: 0,
            busy_since_ticks: ticks,
            mss_limit,
            challenges: 0,
            error: None,
        }
    }

    /// Where the connection stands.
    #[inline]
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it ended, if not by both sides' FIN.
    #[inline]
    pub fn error(&self) -> Option<ConnectionError> {
        self.error
    }

    /// The earliest moment at which [`Tcb::on_timer`] has something to do;
    /// [`Instant::FAR_FUTURE`] if there is none.
    ///
    /// A timer that was set for this moment need not be moved when the deadline moves back: calling
    /// [`Tcb::on_timer`] early does nothing.
    #[inline]
    pub fn deadline(&self) -> Instant {
        let at = self.retransmit_at.min(self.ack_at).min(self.idle_at);
        if self.marks.contains(Marks::PACE_WAIT) { at.min(self.pace_at()) } else { at }
    }

    /// Whether [`Tcb::transmit`] has something to send now.
    #[inline(always)]
    pub fn wants_transmit(&self) -> bool {
        self.facts.intersects(Facts::TX_ANY)
            || self.can_resend()
            || (self.snd_nxt != self.snd_limit() && self.sendable() != 0)
    }

    /// Most bytes of payload in a segment that is sent.
    #[inline]
    pub fn mss(&self) -> u16 {
        self.mss
    }

    /// Whether an ACK is due now.
    #[inline]
    pub fn owes_ack(&self) -> bool {
        self.facts.contains(Facts::TX_ACK)
    }

    /// Whether there is nothing to send and nothing to find out about why: [`Tcb::transmit`] would
    /// return `false` and change nothing.
    #[inline]
    pub fn all_sent(&self) -> bool {
        !self.facts.intersects(Facts::TX_ANY | Facts::TX_LOST) && self.snd_nxt == self.snd_limit()
    }

    /// Behind the last number that is to be sent, the FIN's included.
    #[inline]
    pub(crate) fn snd_limit(&self) -> SeqNumber {
        self.snd_end + u32::from(self.facts.contains(Facts::FIN_QUEUED))
    }

    /// Whether the application has let go of the connection, but not everything it sent is
    /// acknowledged.
    pub(crate) fn is_orphan(&self) -> bool {
        self.facts.contains(Facts::DETACHED)
            && matches!(self.state, State::FinWait1 | State::Closing | State::LastAck)
    }

    /// Whether this side's FIN is acknowledged.
    #[inline]
    pub(crate) fn fin_acked(&self) -> bool {
        self.facts.contains(Facts::FIN_QUEUED) && self.snd_una.gt(self.snd_end)
    }

    /// Microseconds since the lone segment in flight was sent.
    #[inline]
    pub(crate) fn since_sent_us(&self, now: Instant) -> u32 {
        let units = ((now.as_nanos() >> 6) as u32).wrapping_sub(self.sent_64ns);
        ((u64::from(units) * 64 + 500) / 1000) as u32
    }

    /// Numbers sent and not acknowledged.
    #[inline]
    pub(crate) fn flight(&self) -> u32 {
        self.snd_nxt.bytes_since(self.snd_una)
    }

    /// Stream bytes that are queued and were never sent.
    #[inline]
    pub fn unsent_bytes(&self) -> usize {
        self.snd_end.distance(self.first_data().max(self.snd_max)).max(0) as usize
    }

    /// Stream bytes that are queued, sent or not, and not acknowledged.
    #[inline]
    pub fn unacked_bytes(&self) -> usize {
        self.snd_end.distance(self.first_data()).max(0) as usize
    }

    /// Number of the oldest unacknowledged byte: behind the SYN, if that is not acknowledged.
    #[inline]
    pub(crate) fn first_data(&self) -> SeqNumber {
        let syn = matches!(self.state, State::SynSent | State::SynReceived);
        self.snd_una + u32::from(syn)
    }

    /// Stream bytes acknowledged since the connection was opened.
    #[inline]
    pub fn acked_total(&self) -> u64 {
        self.acked_total
    }

    /// Stream bytes ever given to [`Tcb::send`].
    #[inline]
    pub fn queued_total(&self) -> u64 {
        self.acked_total + self.unacked_bytes() as u64
    }

    /// Bytes that could be sent at once if they were queued now: what the windows leave beyond what
    /// is in flight and what is queued already. A disk is read for this much.
    #[inline]
    pub fn window_room(&self) -> usize {
        if !self.state.accepts_data() {
            return 0;
        }
        let window = self.window.cwnd.min(self.snd_wnd);
        (window as usize).saturating_sub(self.unacked_bytes())
    }

    /// Bytes that may be queued before the send buffer is full.
    #[inline]
    pub fn send_room(&self, config: &Config) -> usize {
        if !self.state.accepts_data() || self.facts.contains(Facts::FIN_QUEUED) {
            return 0;
        }
        (self.send_buf_bytes(config) as usize).saturating_sub(self.unacked_bytes())
    }

    /// Bytes that may be read now.
    #[inline]
    pub fn readable_bytes(&self) -> usize {
        self.receive_queue.bytes as usize
    }

    /// Whether the peer has closed and everything it sent was read.
    #[inline]
    pub fn recv_finished(&self) -> bool {
        self.facts.contains(Facts::RCV_FIN) && self.receive_queue.bytes == 0
    }

    /// Whether the slices that are queued may be forgotten: the record is [`State::Closed`] and has
    /// nothing to send or to be read.
    pub fn is_done(&self) -> bool {
        self.state == State::Closed && !self.wants_transmit() && self.receive_queue.bytes == 0
    }

    /// Numbers for people and for measurements, but for those of single segments: see
    /// [`Self::info_in`].
    pub fn info(&self) -> TcpInfo {
        TcpInfo {
            state: self.state,
            srtt_us: self.rtt.srtt_us(),
            rttvar_us: self.rtt.rttvar_us(),
            rto_us: self.rtt.rto_us,
            backoff: self.backoff,
            congestion: self.congestion.algorithm(),
            cwnd_bytes: self.window.cwnd,
            ssthresh_bytes: self.window.ssthresh,
            flight_bytes: self.pipe(),
            in_recovery: self.ca_state >= CongestionState::Recovery,
            ca_state: self.ca_state,
            snd_wnd_bytes: self.snd_wnd,
            snd_wnd_max_bytes: self.snd_wnd_max,
            rcv_wnd_bytes: self.rcv_adv.bytes_since(self.rcv_nxt),
            mss_bytes: self.mss,
            retransmits: self.retransmits,
            sacked: 0,
            lost: 0,
            retrans: 0,
            unacked: self.flight().div_ceil(u32::from(self.mss)),
            reordering: self.reordering,
            min_rtt_us: self.min_rtt_us,
            delivery_rate: u64::from(self.delivery_kib_per_s) << 10,
            pacing_rate: self.pacing_rate(),
            ecn: self.facts.contains(Facts::ECN),
            recv_buffer_bytes: self.recv_buf_bytes,
            rcv_mss_bytes: self.rcv_mss,
            mss_limit_bytes: self.mss_limit,
            probes: if self.facts.contains(Facts::PERSIST) || self.marks.contains(Marks::LINK_WAIT)
            {
                self.retries
            } else {
                0
            },
            bytes_received: self.bytes_received(),
            timestamps: self.facts.contains(Facts::TIMESTAMPS),
            sack: self.facts.contains(Facts::SACK),
            window_scale: self.facts.contains(Facts::WINDOW_SCALE),
            snd_scale: self.snd_scale,
            rcv_scale: self.rcv_scale,
        }
    }

    /// Stream bytes received in order, modulo 2^32.
    fn bytes_received(&self) -> u32 {
        let fin = u32::from(self.facts.contains(Facts::RCV_FIN));
        self.rcv_nxt.bytes_since(self.rcv_isn).saturating_sub(1 + fin)
    }

    /// Microseconds since something last came.
    pub fn silent_us(&self, now: Instant) -> u64 {
        let ticks = ((now.as_nanos() / TICK_NANOS) as u32).wrapping_sub(self.last_recv_ticks);
        u64::from(ticks) * TICK_NANOS / 1000
    }

    /// As [`Self::info`], with what is known about each segment in flight.
    pub fn info_in(&self, slices: &SliceSlab) -> TcpInfo {
        let mut info = self.info();
        if let Some((flight, records)) = slices.flights.get(self.flight) {
            let sack = self.facts.contains(Facts::SACK);
            [info.sacked, info.lost, info.retrans, info.unacked] =
                count_segments(flight, records, sack);
        }
        info
    }

    /// Sends small segments at once (`TCP_NODELAY`), or lets them wait for an acknowledgement. What
    /// is held back now goes out, even if it is corked.
    pub fn set_nodelay(&mut self, nodelay: bool) {
        self.facts.set(Facts::NODELAY, nodelay);
        if nodelay && self.snd_end.gt(self.snd_nxt) {
            self.facts.remove(Facts::MORE);
            self.marks.set(Marks::FLUSH, self.facts.contains(Facts::CORK));
        }
    }

    /// Holds back less than a full segment (`TCP_CORK`) until this is taken back, or the override
    /// time-out.
    pub fn set_cork(&mut self, env: &mut Env<'_>, cork: bool) {
        self.facts.set(Facts::CORK, cork);
        self.facts.remove(Facts::MORE);
        self.arm_persist_if_stalled(env);
    }

    /// Takes another congestion controller than [`Config::congestion`](crate::Config::congestion).
    /// Has an effect until the first data is acknowledged: what a controller has learnt cannot be
    /// given to another. Allocates.
    pub fn set_congestion(&mut self, env: &mut Env<'_>, algorithm: Algorithm) {
        if self.acked_total == 0 && self.congestion.algorithm() != algorithm {
            self.congestion = Congestion::new(algorithm, env.config.growth_segments());
            if self.window.cwnd != 0 {
                let (mss, now_us) = (u32::from(self.mss), env.now.as_micros());
                self.congestion.on_open(&mut self.window, mss, now_us);
                self.serve_controller(env);
                self.settle_dctcp();
            }
        }
    }

    /// Gives the connection up after so long without progress (RFC 5482, for this side alone); 0: as
    /// [`Config::user_timeout_us`](crate::Config::user_timeout_us) says. Counts in milliseconds.
    pub fn set_user_timeout(&mut self, timeout_us: u64) {
        self.user_timeout_ms = timeout_us.div_ceil(1_000).min(u64::from(u32::MAX)) as u32;
    }

    /// The user time-out in microseconds; 0: none.
    pub(crate) fn user_timeout_us(&self, config: &Config) -> u64 {
        match self.user_timeout_ms {
            0 => config.user_timeout_us,
            timeout_ms => u64::from(timeout_ms) * 1_000,
        }
    }

    /// Asks a silent peer whether it is there, or not, at the times of
    /// [`Config::keepalive`](crate::Config::keepalive) or its defaults.
    pub fn set_keepalive(&mut self, env: &mut Env<'_>, keepalive: bool) {
        self.facts.set(Facts::KEEPALIVE, keepalive);
        self.arm_keepalive(env);
    }
}

/// Least segment: below it options leave no room for payload, and a peer could make this side send
/// a header for each byte.
pub(crate) const MSS_MIN: u16 = 88;

/// What a peer takes that does not say (RFC 9293 section 3.7.1, MUST-15).
pub(crate) const MSS_DEFAULT: u16 = 536;
