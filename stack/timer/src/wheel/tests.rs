use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn at_tick(tick: u64) -> Instant {
    Instant::from_nanos(tick << TICK_SHIFT)
}

/// Everything that is due, however many calls it takes.
fn drain(wheel: &mut TimerWheel, now: Instant) -> Vec<u32> {
    let mut tokens = Vec::new();
    while wheel.next_deadline() <= now {
        tokens.extend(wheel.pop_expired(now));
    }
    assert_eq!(wheel.pop_expired(now), None);
    tokens
}

#[test]
fn a_node_is_24_bytes_and_an_id_has_a_niche() {
    assert_eq!(size_of::<Node>(), 24);
    assert_eq!(size_of::<Option<TimerId>>(), 8);
}

#[test]
fn a_timer_fires_in_the_first_tick_after_its_deadline() {
    let mut wheel = TimerWheel::with_capacity(4, Instant::ZERO);
    for (nanos, tick) in [(5 * TICK_NANOS, 5), (5 * TICK_NANOS + 1, 6), (6 * TICK_NANOS - 1, 6)] {
        wheel.insert(Instant::from_nanos(nanos), 7).unwrap();
        assert_eq!(wheel.next_deadline(), at_tick(tick));
        assert_eq!(wheel.pop_expired(Instant::from_nanos(tick * TICK_NANOS - 1)), None);
        assert_eq!(wheel.pop_expired(at_tick(tick)), Some(7));
        wheel = TimerWheel::with_capacity(4, Instant::ZERO);
    }
}

#[test]
fn a_full_wheel_refuses_and_recovers() {
    let mut wheel = TimerWheel::with_capacity(2, Instant::ZERO);
    let first = wheel.insert(at_tick(9), 1).unwrap();
    let second = wheel.insert(at_tick(9), 2).unwrap();
    assert_eq!(wheel.insert(at_tick(9), 3), None);
    assert!(wheel.cancel(first));
    let third = wheel.insert(at_tick(10), 3).unwrap();
    assert_ne!(third, first);
    assert!(!wheel.cancel(first), "its node belongs to another timer now");
    assert_eq!(drain(&mut wheel, at_tick(9)), [2]);
    assert!(!wheel.cancel(second), "it has fired");
    assert_eq!((wheel.len(), wheel.capacity()), (1, 2));
    assert_eq!(TimerWheel::with_capacity(0, Instant::ZERO).insert(at_tick(1), 1), None);
}

#[test]
fn the_past_fires_at_once() {
    let mut wheel = TimerWheel::with_capacity(4, at_tick(1000));
    wheel.insert(at_tick(3), 1).unwrap();
    assert!(wheel.next_deadline() <= at_tick(1000));
    assert_eq!(drain(&mut wheel, at_tick(1000)), [1]);
}

#[test]
fn the_end_of_time_never_comes() {
    let mut wheel = TimerWheel::with_capacity(4, Instant::ZERO);
    wheel.insert(Instant::FAR_FUTURE, 1).unwrap();
    assert_eq!(wheel.next_deadline(), Instant::FAR_FUTURE);
    assert_eq!(wheel.pop_expired(Instant::FAR_FUTURE), None);
    wheel.insert(Instant::from_nanos(u64::MAX - 1023), 2).unwrap();
    assert_eq!(drain(&mut wheel, Instant::from_nanos(u64::MAX - 1)), [2]);
    assert_eq!(wheel.len(), 1);
}

#[test]
fn a_jump_of_years_costs_no_more_than_its_timers() {
    let mut wheel = TimerWheel::with_capacity(3, Instant::ZERO);
    let day = 86_400_000_000_000;
    for days in [1, 40, 5000] {
        wheel.insert(Instant::from_nanos(days * day), days as u32).unwrap();
    }
    let now = Instant::from_nanos(10_000 * day);
    let mut tokens: Vec<_> = (0..3).map(|_| wheel.pop_expired(now).unwrap()).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [1, 40, 5000]);
    assert_eq!(wheel.cascaded(), 0, "slots whose time is over are not moved down");
}

#[test]
fn a_crowd_at_one_instant_never_makes_a_call_long() {
    const CROWD: u32 = 200_000;
    let mut wheel = TimerWheel::with_capacity(CROWD as usize, Instant::ZERO);
    // Far enough to be three levels up, and the last tick of its slot there.
    let due = at_tick((1 << 20) - 1);
    for token in 0..CROWD {
        wheel.insert(due, token).unwrap();
    }
    let mut calls = 0;
    let mut now = Instant::ZERO;
    let mut fired = 0;
    while fired < CROWD {
        now = now.max(wheel.next_deadline());
        let before = wheel.cascaded();
        if let Some(token) = wheel.pop_expired(now) {
            assert!(now >= due);
            assert_eq!(token, fired, "first in, first out");
            fired += 1;
        }
        assert!(wheel.cascaded() - before <= u64::from(CASCADE_MAX));
        calls += 1;
    }
    // Four levels at most, CASCADE_MAX moves a call, then a call each.
    assert!(calls < CROWD + 4 * CROWD / CASCADE_MAX + 10, "{calls} calls");
}

#[test]
fn a_slot_may_be_changed_while_it_is_cascading() {
    let mut wheel = TimerWheel::with_capacity(1000, Instant::ZERO);
    let ids: Vec<_> =
        (0..300).map(|token| wheel.insert(at_tick(4096 + 70), token).unwrap()).collect();
    // One call moves a few of them; the others still wait in the slot.
    assert_eq!(wheel.pop_expired(at_tick(4096)), None);
    assert_eq!(wheel.cascaded(), u64::from(CASCADE_MAX));
    assert!(wheel.next_deadline() <= at_tick(4096));
    wheel.insert(at_tick(4097), 1000).unwrap();
    for id in &ids[1..] {
        assert!(wheel.cancel(*id));
    }
    assert_eq!(wheel.next_deadline(), at_tick(4097));
    assert_eq!(drain(&mut wheel, at_tick(4097)), [1000]);
    assert_eq!(drain(&mut wheel, at_tick(5000)), [0]);
}

#[test]
fn a_clock_that_goes_back_loses_nothing() {
    let mut wheel = TimerWheel::with_capacity(4, Instant::ZERO);
    for (token, tick) in [(0, 4097), (1, 6005), (2, 4200), (3, 7000)] {
        wheel.insert(at_tick(tick), token).unwrap();
    }
    assert_eq!(wheel.pop_expired(at_tick(6000)), Some(0));
    // The slot of all four is being emptied, from tick 6000's point of view.
    let mut tokens = Vec::from_iter(wheel.pop_expired(at_tick(4096)));
    tokens.extend(drain(&mut wheel, at_tick(6000)));
    assert_eq!(tokens, [2]);
    assert_eq!(wheel.pop_expired(at_tick(10)), None);
    assert_eq!(drain(&mut wheel, at_tick(9000)), [1, 3]);
}

#[test]
fn a_late_cascade_goes_straight_to_the_right_level() {
    let mut wheel = TimerWheel::with_capacity(1, Instant::ZERO);
    wheel.insert(at_tick(4096 + 70), 1).unwrap();
    assert_eq!(drain(&mut wheel, at_tick(4096 + 65)), []);
    assert_eq!(wheel.next_deadline(), at_tick(4096 + 70));
    assert_eq!(wheel.cascaded(), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Insert { ahead_nanos: u64 },
    InsertMany { ahead_nanos: u64, count: u32 },
    InsertPast { ago_nanos: u64 },
    Cancel(prop::sample::Index),
    CancelStale(prop::sample::Index),
    Advance { nanos: u64 },
    AdvanceToNext,
    Pop { calls: u8 },
    Drain,
}

/// A number of any magnitude up to `bits` bits.
fn magnitude(bits: u32) -> impl Strategy<Value = u64> {
    (0..bits, any::<u64>()).prop_map(|(bit, noise)| (1 << bit) | (noise & ((1 << bit) - 1)))
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => magnitude(58).prop_map(|ahead_nanos| Op::Insert { ahead_nanos }),
        4 => magnitude(24).prop_map(|ahead_nanos| Op::Insert { ahead_nanos }),
        1 => (magnitude(40), 1u32..200)
            .prop_map(|(ahead_nanos, count)| Op::InsertMany { ahead_nanos, count }),
        1 => magnitude(40).prop_map(|ago_nanos| Op::InsertPast { ago_nanos }),
        3 => any::<prop::sample::Index>().prop_map(Op::Cancel),
        1 => any::<prop::sample::Index>().prop_map(Op::CancelStale),
        3 => magnitude(57).prop_map(|nanos| Op::Advance { nanos }),
        3 => magnitude(24).prop_map(|nanos| Op::Advance { nanos }),
        4 => Just(Op::AdvanceToNext),
        4 => (1u8..5).prop_map(|calls| Op::Pop { calls }),
        3 => Just(Op::Drain),
    ]
}

/// Deadlines in ticks, rounded up, and the ids by token.
#[derive(Default)]
struct Model {
    live: BTreeMap<u32, (TimerId, u64)>,
    gone: Vec<TimerId>,
    tokens: u32,
}

impl Model {
    fn insert(&mut self, wheel: &mut TimerWheel, deadline: Instant) {
        let token = self.tokens;
        match wheel.insert(deadline, token) {
            Some(id) => {
                self.tokens += 1;
                self.live.insert(token, (id, deadline.as_nanos().div_ceil(TICK_NANOS)));
            }
            None => assert_eq!(self.live.len(), wheel.capacity()),
        }
    }

    fn fired(&mut self, token: u32, now: Instant) {
        let (id, tick) = self.live.remove(&token).expect("a live timer fires, once");
        assert!(at_tick(tick) <= now, "never early");
        self.gone.push(id);
    }

    fn earliest(&self) -> Instant {
        self.live.values().map(|(_, tick)| at_tick(*tick)).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..Default::default() })]

    #[test]
    fn agrees_with_a_map(
        start in magnitude(58),
        ops in prop::collection::vec(any_op(), 1..200),
    ) {
        let mut now = Instant::from_nanos(start);
        let mut wheel = TimerWheel::with_capacity(500, now);
        let mut model = Model::default();
        for op in ops.into_iter().chain([Op::Drain]) {
            match op {
                Op::Insert { ahead_nanos } => {
                    model.insert(&mut wheel, now.plus_nanos(ahead_nanos));
                }
                Op::InsertMany { ahead_nanos, count } => {
                    for extra in 0..u64::from(count) {
                        let spread = (extra % 3) * (ahead_nanos / 4);
                        model.insert(&mut wheel, now.plus_nanos(ahead_nanos + spread));
                    }
                }
                Op::InsertPast { ago_nanos } => {
                    let past = now.as_nanos().saturating_sub(ago_nanos);
                    model.insert(&mut wheel, Instant::from_nanos(past));
                }
                Op::Cancel(which) if !model.live.is_empty() => {
                    let token = *model.live.keys().nth(which.index(model.live.len())).unwrap();
                    let (id, _) = model.live.remove(&token).unwrap();
                    prop_assert!(wheel.cancel(id));
                    model.gone.push(id);
                }
                Op::CancelStale(which) if !model.gone.is_empty() => {
                    prop_assert!(!wheel.cancel(*which.get(&model.gone)));
                }
                Op::Cancel(_) | Op::CancelStale(_) => {}
                Op::Advance { nanos } => now = now.plus_nanos(nanos),
                Op::AdvanceToNext => {
                    if wheel.next_deadline() < Instant::FAR_FUTURE {
                        now = now.max(wheel.next_deadline());
                    }
                }
                Op::Pop { calls } => {
                    for _ in 0..calls {
                        let before = wheel.cascaded();
                        if let Some(token) = wheel.pop_expired(now) {
                            model.fired(token, now);
                        }
                        prop_assert!(wheel.cascaded() - before <= u64::from(CASCADE_MAX));
                    }
                }
                Op::Drain => {
                    for token in drain(&mut wheel, now) {
                        model.fired(token, now);
                    }
                    prop_assert!(model.earliest() > now, "never late");
                }
            }
            prop_assert_eq!(wheel.len(), model.live.len());
            prop_assert!(wheel.next_deadline() <= model.earliest().max(now));
            prop_assert_eq!(wheel.is_empty(), wheel.next_deadline() == Instant::FAR_FUTURE);
        }
    }

    /// A loop that wakes at `next_deadline` only sees every timer in its tick, in order.
    #[test]
    fn sleeping_until_the_next_deadline_suffices(
        start in magnitude(50),
        ahead in prop::collection::vec(magnitude(45), 1..100),
    ) {
        let mut now = Instant::from_nanos(start);
        let mut wheel = TimerWheel::with_capacity(ahead.len(), now);
        let mut ticks: Vec<_> = ahead.iter().map(|nanos| (start + nanos).div_ceil(TICK_NANOS)).collect();
        for nanos in &ahead {
            wheel.insert(now.plus_nanos(*nanos), (start + nanos).div_ceil(TICK_NANOS) as u32).unwrap();
        }
        ticks.sort_unstable();
        for tick in ticks {
            let mut wakes = 0;
            let token = loop {
                now = now.max(wheel.next_deadline());
                wakes += 1;
                if let Some(token) = wheel.pop_expired(now) {
                    break token;
                }
            };
            prop_assert_eq!(token, tick as u32);
            prop_assert_eq!(now, at_tick(tick));
            prop_assert!(wakes <= 2 * LEVELS);
        }
        prop_assert!(wheel.is_empty());
    }
}
