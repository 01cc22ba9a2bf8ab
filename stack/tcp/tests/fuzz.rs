//! Whatever comes, in whatever state: no panic, no leak, no lie.

mod common;

use common::{End, Frame, Pair};
use millstream_tcp::{Config, State};
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, SackBlocks, SeqNumber, Timestamp};
use proptest::prelude::*;

/// A thing that can happen to an end.
#[derive(Clone, Debug)]
enum Op {
    /// Numbers are relative to what the end expects and has sent.
    Segment {
        seq: i32,
        ack: i32,
        flags: u8,
        window: u16,
        stamp: Option<i32>,
        len: usize,
        raw: Vec<u8>,
    },
    Send(usize),
    Recv(usize),
    Wait(u64),
    Close,
    Detach,
    Abort,
    Cork(bool),
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![
        6 => Just(0),
        4 => -3i32..4,
        3 => -3000i32..3000,
        1 => -100_000i32..100_000,
        1 => any::<i32>(),
    ]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        8 => Just(Flags::ACK.bits()),
        3 => Just((Flags::ACK | Flags::FIN).bits()),
        2 => Just((Flags::ACK | Flags::SYN).bits()),
        1 => Just(Flags::RST.bits()),
        2 => any::<u8>(),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let segment = (
        near(),
        near(),
        flags(),
        prop_oneof![Just(0u16), Just(1), any::<u16>()],
        prop_oneof![1 => Just(None), 6 => near().prop_map(Some)],
        prop_oneof![3 => Just(0usize), 3 => 1usize..5, 2 => 1usize..1500],
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(seq, ack, flags, window, stamp, len, raw)| Op::Segment {
            seq,
            ack,
            flags,
            window,
            stamp,
            len,
            raw,
        });
    prop_oneof![
        20 => segment,
        4 => (1usize..5000).prop_map(Op::Send),
        3 => (1usize..3000).prop_map(Op::Recv),
        3 => prop_oneof![0u64..1000, 0u64..300_000, 0u64..100_000_000].prop_map(Op::Wait),
        1 => Just(Op::Close),
        1 => any::<bool>().prop_map(Op::Cork),
        1 => prop_oneof![4 => Just(Op::Close), 1 => Just(Op::Detach), 1 => Just(Op::Abort)],
    ]
}

/// An end in `state`, and the moment; the rest of the pair is forgotten.
fn end_in(state: State, config: &Config) -> (End, Instant, SeqNumber) {
    let mut pair = Pair::new(config.clone(), config.clone());
    let isn = pair.ends[1].isn;
    match state {
        State::SynSent | State::Closed => pair.ends[0].connect(pair.now),
        State::SynReceived => {
            pair.ends[0].connect(pair.now);
            let syn = Frame::make(
                isn,
                SeqNumber(0),
                Flags::SYN,
                5000,
                &[8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 3, 3],
                &[],
            );
            let now = pair.now;
            pair.ends[0].input(now, &syn);
            pair.ends[0].transmit(now);
        }
        _ => pair.connect(),
    }
    let now = pair.now;
    pair.ends[0].transmit(now);
    let closes_first =
        matches!(state, State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait);
    let other = matches!(state, State::CloseWait | State::LastAck);
    if closes_first {
        pair.ends[0].close(now);
        match state {
            State::FinWait1 => {
                pair.ends[0].transmit(now);
            }
            State::Closing => {
                pair.ends[1].close(now);
                pair.pump();
                pair.filter = Some(Box::new(|_, _| false));
                pair.run_for(6_000);
            }
            State::FinWait2 => pair.run_for(50_000),
            _ => {
                pair.run_for(50_000);
                let now = pair.now;
                pair.ends[1].close(now);
                pair.run_for(50_000);
            }
        }
    }
    if other {
        pair.ends[1].close(now);
        pair.run_for(50_000);
        if state == State::LastAck {
            let now = pair.now;
            pair.ends[0].close(now);
        }
    }
    if state == State::Closed {
        pair.ends[0].close(now);
    }
    let now = pair.now;
    let [mut end, mut peer] = pair.ends;
    peer.release();
    end.reads = false;
    assert_eq!(end.state(), state);
    (end, now, isn)
}

const STATES: [State; 10] = [
    State::Closed,
    State::SynSent,
    State::SynReceived,
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::Closing,
    State::LastAck,
    State::TimeWait,
];

#[test]
fn every_state_can_be_reached() {
    for state in STATES {
        let (mut end, ..) = end_in(state, &Config::default());
        end.release();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn nothing_breaks_an_end(
        state in 0usize..STATES.len(),
        options in any::<(bool, bool, bool)>(),
        tight in any::<bool>(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut config = Config {
            timestamps: options.0, sack: options.1, window_scaling: options.2, ..Config::default()
        };
        if tight {
            config.recv_buffer_bytes = 3_000;
            config.send_buffer_bytes = 6_000;
            config.recv_slices_max = 8;
            config.reassembly_ranges_max = 3;
        }
        let (mut end, mut now, isn) = end_in(STATES[state], &config);
        let mut peer_nxt = isn + 1;
        let mut acked_before = end.tcb.as_ref().unwrap().acked_total();
        for op in ops {
            match op {
                Op::Segment { seq, ack, flags, window, stamp, len, raw } => {
                    // What the end expects shows in what it sends.
                    let options: Vec<u8> = match stamp {
                        None => raw,
                        Some(offset) => {
                            let clock = (now.as_nanos() >> 20) as u32 + 2000;
                            let value = clock.wrapping_add_signed(offset);
                            let mut blocks = SackBlocks::EMPTY;
                            if raw.len() > 30 {
                                blocks.push(SeqNumber(raw.len() as u32), SeqNumber(7));
                            }
                            millstream_wire::tcp::Options::established(Some(Timestamp { value, echo: clock }), &blocks).as_slice().to_vec()
                        }
                    };
                    let tcb = end.tcb.as_ref().unwrap();
                    let una = end.isn + 1 + tcb.acked_total() as u32;
                    let flight = tcb.info().flight_bytes;
                    let ack_base = if ack % 2 == 0 { una } else { una + flight };
                    let frame = Frame::make(
                        SeqNumber(peer_nxt.0.wrapping_add_signed(seq)),
                        SeqNumber(ack_base.0.wrapping_add_signed(ack / 2)),
                        Flags::from_bits_retain(flags), window, &options, &vec![9; len],
                    );
                    end.input(now, &frame);
                }
                Op::Send(len) => { end.send(now, &vec![3; len]); }
                Op::Recv(len) => {
                    let mut out = vec![0; len];
                    end.with(now, |tcb, env| tcb.recv_into(env, &mut out));
                }
                Op::Wait(micros) => {
                    let until = now.plus_micros(micros);
                    while end.tcb.as_ref().unwrap().deadline() <= until {
                        now = now.max(end.tcb.as_ref().unwrap().deadline());
                        end.timer(now);
                        prop_assert!(end.tcb.as_ref().unwrap().deadline() > now);
                        while end.transmit(now).is_some() {}
                    }
                    now = until;
                }
                Op::Close => end.close(now),
                Op::Detach => end.with(now, |tcb, env| tcb.detach(env)),
                Op::Abort => end.with(now, |tcb, env| tcb.abort(env)),
                Op::Cork(cork) => end.with(now, |tcb, env| tcb.set_cork(env, cork)),
            }
            let mut burst = 0;
            while let Some(frame) = end.transmit(now) {
                let header = frame.parse();
                if header.flags.contains(Flags::ACK) { peer_nxt = header.ack; }
                burst += 1;
                prop_assert!(burst < 1000, "an end never stops sending");
            }
            let tcb = end.tcb.as_ref().unwrap();
            prop_assert!(tcb.acked_total() >= acked_before && tcb.acked_total() <= tcb.queued_total());
            acked_before = tcb.acked_total();
            prop_assert!(tcb.info().rcv_wnd_bytes <= 1 << 30);
            prop_assert!(tcb.info().cwnd_bytes <= 1 << 30);
            // A slice may stand on both sides of the bound of what is queued to be sent.
            prop_assert!(tcb.readable_bytes() <= config.recv_buffer_bytes as usize + 2 * 1460 + 16);
            if tcb.state() == State::Closed {
                prop_assert_eq!(tcb.deadline(), Instant::FAR_FUTURE);
            } else if tcb.unacked_bytes() > 0 && !matches!(tcb.state(), State::SynSent | State::SynReceived | State::TimeWait | State::FinWait2) {
                // Something is owed to the peer: a timer or its ACK must get it out.
                prop_assert!(tcb.deadline() != Instant::FAR_FUTURE, "stuck: {:?}", tcb);
            }
        }
        end.release();
    }
}
