use proptest::prelude::*;

use super::*;
use crate::{Config, Ecn, SliceSlab, TcpStats};

const MSS_LIMIT: u16 = 1460;
const TS_OFFSET: u32 = 0xffff_fff0;

fn names() -> (SocketAddr, SocketAddr) {
    ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:5000".parse().unwrap())
}

/// What the two sides of a listener share.
struct Side {
    cookies: SynCookies,
    config: Config,
    slices: SliceSlab,
    stats: TcpStats,
}

impl Side {
    fn new(config: Config) -> Self {
        Self {
            cookies: SynCookies::new([7; 16]),
            config,
            slices: SliceSlab::with_capacity(64),
            stats: TcpStats::default(),
        }
    }

    fn answer(&mut self, now: Instant, syn: &Header<'_>) -> Segment {
        let mut out = Segment::default();
        let mut env =
            Env { now, config: &self.config, slices: &mut self.slices, stats: &mut self.stats };
        self.cookies.answer(&mut env, names(), TS_OFFSET, MSS_LIMIT, syn, &mut out);
        out
    }

    fn accept(
        &mut self,
        now: Instant,
        names: (SocketAddr, SocketAddr),
        ack: &Header<'_>,
    ) -> Option<(Tcb, Events)> {
        let mut env =
            Env { now, config: &self.config, slices: &mut self.slices, stats: &mut self.stats };
        self.cookies.accept(&mut env, names, TS_OFFSET, MSS_LIMIT, ack, None)
    }
}

fn header(seq: u32, ack: u32, flags: Flags, options: &[u8]) -> Header<'_> {
    let (seq, ack) = (SeqNumber(seq), SeqNumber(ack));
    Header { src_port: 5000, dst_port: 80, seq, ack, flags, window: 500, urgent: 0, options }
}

fn syn_options(mss: u16, scale: Option<u8>, sack: bool, stamped: bool) -> Options {
    let timestamp = stamped.then_some(Timestamp { value: 0x9000_0000, echo: 0 });
    Options::syn(mss, scale, sack, timestamp)
}

/// The ACK of a peer that got `answer`.
fn ack_options(answer: &Segment) -> Options {
    let syn_ack = header(0, 0, Flags::SYN, answer.options.as_slice());
    let timestamp = syn_ack
        .timestamp()
        .map(|timestamp| Timestamp { value: 0x9000_0001, echo: timestamp.value });
    Options::established(timestamp, &millstream_wire::tcp::SackBlocks::EMPTY)
}

fn at(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

#[test]
fn what_was_agreed_comes_back() {
    for (stamped, scale, sack, mss) in [
        (true, Some(7), true, 1460),
        (true, Some(0), false, 1400),
        (true, Some(14), true, 9000),
        (true, None, true, 536),
        (false, Some(7), true, 1460),
        (false, None, false, 100),
    ] {
        let mut side = Side::new(Config::default());
        let options = syn_options(mss, scale, sack, stamped);
        let answer = side.answer(at(100), &header(77, 0, Flags::SYN, options.as_slice()));
        assert_eq!((answer.flags, answer.ack), (Flags::SYN | Flags::ACK, SeqNumber(78)));
        let said = header(0, 0, Flags::SYN, answer.options.as_slice()).syn_options();
        assert_eq!(said.timestamp.is_some(), stamped);
        assert_eq!(said.window_scale.is_some(), stamped && scale.is_some());
        assert_eq!(said.sack_permitted, stamped && sack);
        let options = ack_options(&answer);
        let ack = header(78, answer.seq.0.wrapping_add(1), Flags::ACK, options.as_slice());
        let (mut tcb, events) = side.accept(at(101), names(), &ack).expect("its cookie");
        assert!(events.contains(Events::ESTABLISHED));
        let info = tcb.info();
        assert_eq!((info.state, info.timestamps), (State::Established, stamped));
        assert_eq!(info.sack, stamped && sack);
        assert_eq!(info.snd_scale, if stamped { scale.unwrap_or(0) } else { 0 });
        let expected = if mss == 100 { MSS_MIN } else { mss.min(MSS_LIMIT) };
        assert_eq!(info.mss_bytes, expected - if stamped { 12 } else { 0 });
        // As if the handshake had been remembered: no loss is supposed.
        assert!(info.cwnd_bytes >= 10 * u32::from(info.mss_bytes).min(1448));
        assert_eq!(info.rto_us, Config::default().initial_rto_us);
        tcb.release(&mut side.slices);
    }
}

#[test]
fn ecn_comes_back_where_it_was_agreed_on() {
    let ask = Flags::SYN | Flags::ECE | Flags::CWR;
    for (ecn, stamped, asked, agreed) in [
        (Ecn::Accept, true, true, true),
        (Ecn::Accept, true, false, false),
        (Ecn::Accept, false, true, false),
        (Ecn::Off, true, true, false),
    ] {
        let mut side = Side::new(Config { ecn, ..Config::default() });
        let options = syn_options(1460, Some(7), true, stamped);
        let flags = if asked { ask } else { Flags::SYN };
        let answer = side.answer(at(100), &header(77, 0, flags, options.as_slice()));
        assert_eq!(answer.flags.contains(Flags::ECE), agreed);
        assert!(!answer.flags.contains(Flags::CWR));
        let options = ack_options(&answer);
        let ack = header(78, answer.seq.0.wrapping_add(1), Flags::ACK, options.as_slice());
        let (mut tcb, _) = side.accept(at(101), names(), &ack).expect("its cookie");
        assert_eq!(tcb.uses_ecn(), agreed);
        tcb.release(&mut side.slices);
    }
}

#[test]
fn cookies_of_ipv6_know_of_jumbo_frames() {
    assert_eq!(mss_table(names())[7], 1460);
    let six = ("[2001:db8::1]:80".parse().unwrap(), "[2001:db8::2]:5000".parse().unwrap());
    assert_eq!(mss_table(six)[7], 8940);
    for table in [MSS_TABLE_V4, MSS_TABLE_V6] {
        assert!(table.is_sorted() && table[0] == MSS_MIN, "{table:?}");
    }
}

#[test]
fn the_timestamp_of_an_answer_is_not_of_the_future() {
    let mut side = Side::new(Config::default());
    for tenths in 0..500 {
        let now = Instant::from_micros(100_000_000 + tenths * 100_000);
        let options = syn_options(1460, Some(7), true, true);
        let answer = side.answer(now, &header(1, 0, Flags::SYN, options.as_slice()));
        let sent = header(0, 0, Flags::SYN, answer.options.as_slice()).timestamp().unwrap().value;
        let ticks = (now.as_nanos() >> 20) as u32;
        let behind = ticks.wrapping_add(TS_OFFSET).wrapping_sub(sent);
        assert!(behind < 64, "{behind} ticks");
    }
}

#[test]
fn a_cookie_is_good_for_one_to_two_periods() {
    for (sent, came, good) in
        [(0, 0, true), (10, 127, true), (63, 127, true), (63, 128, false), (64, 192, false)]
    {
        let mut side = Side::new(Config::default());
        let answer = side.answer(at(sent), &header(5, 0, Flags::SYN, &[]));
        let ack = header(6, answer.seq.0.wrapping_add(1), Flags::ACK, &[]);
        let accepted = side.accept(at(came), names(), &ack);
        assert_eq!(accepted.is_some(), good, "sent at {sent} s, back at {came} s");
    }
    // 32 periods later the number of the period is the same, and the key is not.
    let mut side = Side::new(Config::default());
    let answer = side.answer(at(1), &header(5, 0, Flags::SYN, &[]));
    let ack = header(6, answer.seq.0.wrapping_add(1), Flags::ACK, &[]);
    assert!(side.accept(at(1 + 32 * 64), names(), &ack).is_none());
}

#[test]
fn cookies_are_looked_for_only_while_they_may_come() {
    let mut side = Side::new(Config::default());
    assert!(!side.cookies.may_come(at(1)));
    side.answer(at(1), &header(5, 0, Flags::SYN, &[]));
    assert!(side.cookies.may_come(at(120)));
    assert!(!side.cookies.may_come(at(130)));
}

#[test]
fn a_cookie_of_another_end_is_worth_nothing() {
    let mut side = Side::new(Config::default());
    let answer = side.answer(at(1), &header(5, 0, Flags::SYN, &[]));
    let right = answer.seq.0.wrapping_add(1);
    let (local, remote) = names();
    let other_port = (local, "192.0.2.2:5001".parse().unwrap());
    let other_host = (local, "192.0.2.3:5000".parse().unwrap());
    let ack = header(6, right, Flags::ACK, &[]);
    assert!(side.accept(at(1), other_port, &ack).is_none());
    assert!(side.accept(at(1), other_host, &ack).is_none());
    assert!(side.accept(at(1), (local, remote), &header(7, right, Flags::ACK, &[])).is_none());
    for flags in [Flags::RST, Flags::ACK | Flags::RST, Flags::ACK | Flags::SYN, Flags::FIN] {
        assert!(side.accept(at(1), names(), &header(6, right, flags, &[])).is_none());
    }
    assert!(side.accept(at(1), names(), &ack).is_some());
    assert_eq!(side.slices.used(), 0);
}

proptest! {
    /// Guessing is hopeless: one number in 2^24 and more.
    #[test]
    fn a_guess_opens_nothing(guess: u32, seq: u32) {
        let mut side = Side::new(Config::default());
        let answer = side.answer(at(1), &header(5, 0, Flags::SYN, &[]));
        prop_assume!(guess != answer.seq.0.wrapping_add(1) || seq != 6);
        prop_assert!(side.accept(at(1), names(), &header(seq, guess, Flags::ACK, &[])).is_none());
    }

    /// Whatever a forger writes into the timestamp, the connection is one.
    #[test]
    fn a_forged_timestamp_does_no_harm(echo: u32, value: u32) {
        let mut side = Side::new(Config::default());
        let options = syn_options(1460, Some(7), true, true);
        let answer = side.answer(at(1), &header(5, 0, Flags::SYN, options.as_slice()));
        let stamp = Some(Timestamp { value, echo });
        let options = Options::established(stamp, &millstream_wire::tcp::SackBlocks::EMPTY);
        let ack = header(6, answer.seq.0.wrapping_add(1), Flags::ACK, options.as_slice());
        let (mut tcb, _) = side.accept(at(1), names(), &ack).expect("the number is right");
        prop_assert!(tcb.info().snd_scale <= MAX_WINDOW_SCALE);
        tcb.release(&mut side.slices);
    }
}

/// A small buffer's first window holds whole segments, with a cookie as without.
#[test]
fn the_first_window_is_that_of_any_answer() {
    for (buffer_bytes, window) in [(10_000, 8_760), (1_000, 1_000), (1 << 20, 0xffff)] {
        let mut side = Side::new(Config { recv_buffer_bytes: buffer_bytes, ..Config::default() });
        let options = syn_options(1460, None, true, true);
        let syn = header(100, 0, Flags::SYN, options.as_slice());
        let answer = side.answer(at(10), &syn);
        assert_eq!(u32::from(answer.window), window);
        let options = ack_options(&answer);
        let ack = header(101, answer.seq.0 + 1, Flags::ACK, options.as_slice());
        let (mut tcb, _) = side.accept(at(10), names(), &ack).unwrap();
        assert!(tcb.rcv_adv.bytes_since(tcb.rcv_nxt) >= window);
        let mut out = Segment::default();
        let mut env = Env {
            now: at(10),
            config: &side.config,
            slices: &mut side.slices,
            stats: &mut side.stats,
        };
        let mut usual = Tcb::passive_open(&mut env, SeqNumber(1), 0, MSS_LIMIT, &syn);
        assert!(usual.transmit(&mut env, &mut out));
        assert_eq!(u32::from(out.window), window);
        tcb.release(&mut side.slices);
        usual.release(&mut side.slices);
    }
}
