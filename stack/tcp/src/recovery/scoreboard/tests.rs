use proptest::prelude::*;

use super::*;
use crate::flight::{FINE_RECORDS, Flights, RECORDS_MAX};

const MSS: u32 = 1000;
/// The numbers of the flight wrap.
const UNA: SeqNumber = SeqNumber(u32::MAX - 20_000);

/// A flight of `segments` full segments, and the last one of `tail` bytes.
fn flight(flights: &mut Flights, segments: u32, tail: u32) -> u32 {
    let index = flights.open(UNA);
    let (flight, records) = flights.get_mut(index).unwrap();
    for at in 0..segments {
        let start = UNA + at * MSS;
        let len = if at + 1 == segments { tail } else { MSS };
        flight.push(records, (start, start + len), 1, at, (at + 1) * MSS);
    }
    index
}

fn take(flights: &mut Flights, index: u32, blocks: &[(u32, u32)]) -> Progress {
    let mut progress = Progress::default();
    let (flight, records) = flights.get_mut(index).unwrap();
    let mut ranges: Ranges = blocks.iter().map(|(start, end)| (UNA + *start, UNA + *end)).collect();
    in_order(&mut ranges);
    flight.sack(records, &ranges, MSS, 100_000, 1, &mut progress);
    progress
}

/// The records are in order, and the sums are theirs.
fn check(flights: &Flights, index: u32) {
    let (flight, records) = flights.get(index).unwrap();
    let (mut sacked, mut count, mut at) = (0, 0, flight.head);
    let mut end = None;
    while let Some(record) = records.get(at) {
        assert!(record.start.lt(record.end) && end.is_none_or(|end| end == record.start));
        sacked += if record.is(Fate::SACKED) { record.len() } else { 0 };
        count += 1;
        end = Some(record.end);
        at = record.next;
    }
    assert_eq!(sacked, flight.sacked_bytes);
    assert_eq!(count, flights.records_used());
}

/// Cumulative ACKs that end within what was selectively acknowledged.
#[test]
fn what_is_sacked_is_counted_by_segments_whatever_is_trimmed() {
    let mut flights = Flights::with_capacity(1, 64);
    let index = flight(&mut flights, 10, MSS);
    take(&mut flights, index, &[(0, 8_000)]);
    let (flight, records) = flights.get_mut(index).unwrap();
    assert_eq!(flight.sacked_segments, 8);
    let mut progress = Progress::default();
    for ack in 1..=8 {
        flight.advance(records, UNA + ack * MSS, UNA, 1, 1, &mut progress);
        assert_eq!(flight.sacked_segments, 8 - ack);
    }
    assert_eq!(flight.sacked_bytes, 0);
    flight.mark_lost_by_count(records, MSS, 3, &mut progress);
    assert_eq!(progress.lost, 0);
}

#[test]
fn a_run_with_a_short_tail_is_cut_between_its_segments() {
    let mut flights = Flights::with_capacity(1, 64);
    let index = flights.open(UNA);
    let (flight, records) = flights.get_mut(index).unwrap();
    flight.push(records, (UNA, UNA + 3_100), 4, 0, 3_100);
    assert_eq!(take(&mut flights, index, &[(1_000, 2_000)]).delivered, 1_000);
    let delivered = take(&mut flights, index, &[(1_000, 2_000), (3_000, 3_100)]).delivered;
    assert_eq!(delivered, 100);
    assert_eq!(flights.get(index).unwrap().0.sacked_segments, 2);
}

#[test]
fn a_part_of_a_segment_is_none() {
    let mut flights = Flights::with_capacity(1, 64);
    let index = flight(&mut flights, 10, 500);
    for blocks in [[(1, 2), (5, 6), (9, 10)], [(0, 999), (1001, 2000), (9_000, 9_499)]] {
        assert_eq!(take(&mut flights, index, &blocks).delivered, 0);
        assert_eq!(flights.records_used(), 10);
    }
    // Whole ones inside of what it says count.
    assert_eq!(take(&mut flights, index, &[(1, 3_999), (8_500, 9_500)]).delivered, 2_500);
    check(&flights, index);
}

#[test]
fn a_record_of_many_is_cut_between_segments() {
    let mut flights = Flights::with_capacity(1, 4);
    // One record short: the last one stands for seven.
    let index = flight(&mut flights, 10, MSS);
    assert_eq!(flights.records_used(), 4);
    let (flight, records) = flights.get_mut(index).unwrap();
    flight.advance(records, UNA + 3_000, UNA, 1, 1, &mut Progress::default());
    assert_eq!(take(&mut flights, index, &[(4_001, 4_999)]).delivered, 0);
    assert_eq!(flights.records_used(), 1);
    // Nothing of the lower block, and all of the upper one, which is in the same record.
    let blocks = [(7_000, 10_000), (4_001, 4_999)];
    assert_eq!(take(&mut flights, index, &blocks).delivered, 3_000);
    assert_eq!(flights.records_used(), 2);
    assert_eq!(take(&mut flights, index, &[(4_500, 6_500)]).delivered, 1_000);
    assert_eq!(flights.records_used(), 4);
    check(&flights, index);
}

#[test]
fn what_is_taken_back_is_news_again() {
    let mut flights = Flights::with_capacity(1, 64);
    let index = flight(&mut flights, 10, MSS);
    let blocks = [(0, 2_000), (5_000, 7_000)];
    assert_eq!(take(&mut flights, index, &blocks).delivered, 4_000);
    assert_eq!(take(&mut flights, index, &blocks).delivered, 0);
    let (flight, records) = flights.get_mut(index).unwrap();
    assert!(flight.mark_lost_by_timeout(records, |_| false, &mut Progress::default()));
    assert_eq!(take(&mut flights, index, &blocks).delivered, 4_000);
    check(&flights, index);
}

/// However many segments are out, and whatever is said about them.
#[test]
fn a_flight_has_so_many_records() {
    let mut flights = Flights::with_capacity(1, 100_000);
    let index = flight(&mut flights, 60_000, MSS);
    let fine = FINE_RECORDS as usize;
    assert!((fine..fine + 500).contains(&flights.records_used()), "{}", flights.records_used());
    for at in (1..60_000).step_by(2) {
        take(&mut flights, index, &[(at * MSS, (at + 1) * MSS)]);
    }
    assert!(flights.records_used() <= RECORDS_MAX as usize);
    check(&flights, index);
    // What is acknowledged makes room for finer ones.
    let (flight, records) = flights.get_mut(index).unwrap();
    flight.advance(records, UNA + 60_000 * MSS, UNA, 1, 1, &mut Progress::default());
    assert_eq!((flights.records_used(), flights.get(index).unwrap().0.left_out()), (0, 0));
}

/// What is known of a record of several moments is the last of them.
#[test]
fn a_part_of_what_was_sent_at_several_times_measures_nothing() {
    let mut flights = Flights::with_capacity(1, 4);
    // The last record stands for segments sent from 3 us on to 9 us.
    let index = flight(&mut flights, 10, MSS);
    let (flight, records) = flights.get_mut(index).unwrap();
    let mut progress = Progress::default();
    flight.advance(records, UNA + 3_000, UNA, 1_000, 1, &mut progress);
    assert_eq!(progress.acked_sent_us, Some((0, 2)));
    let mut progress = Progress::default();
    flight.advance(records, UNA + 4_000, UNA, 1_000, 1, &mut progress);
    assert_eq!((progress.delivered, progress.acked_sent_us), (1_000, None));
    let sacked = take(&mut flights, index, &[(6_000, 8_000)]);
    assert_eq!((sacked.delivered, sacked.sacked_sent_us), (2_000, None));
    let sacked = take(&mut flights, index, &[(9_000, 10_000)]);
    assert_eq!((sacked.delivered, sacked.sacked_sent_us), (1_000, Some((9, 9))));
    check(&flights, index);
}

/// Blocks may come from anywhere.
#[test]
fn any_place_is_found_from_any_other() {
    let mut flights = Flights::with_capacity(1, 1_000);
    let index = flight(&mut flights, 400, MSS);
    for at in [399, 0, 200, 190, 210, 10, 390, 300, 100, 1, 398] {
        assert_eq!(take(&mut flights, index, &[(at * MSS, (at + 1) * MSS)]).delivered, MSS);
        check(&flights, index);
    }
}

proptest! {
    /// Blocks in any order, overlapping, repeated, off the boundaries: what counts is each segment
    /// that lies within one of them, or within several that touch.
    #[test]
    fn each_segment_covered_counts_once(
        acks in prop::collection::vec(prop::collection::vec((0u32..80, 1u32..30), 1..4), 1..40),
        unaligned in any::<bool>(),
    ) {
        let unit = if unaligned { 371 } else { MSS };
        let mut flights = Flights::with_capacity(1, 256);
        let index = flight(&mut flights, 30, 700);
        let last = 29 * MSS + 700;
        let mut held = [false; 30];
        for ack in acks {
            let blocks: Vec<_> = ack
                .iter()
                .map(|(at, len)| ((at * unit).min(last), ((at + len) * unit).min(last)))
                .filter(|(start, end)| start < end)
                .collect();
            let mut expected = 0;
            let mut bytes = vec![false; last as usize];
            for (start, end) in &blocks {
                bytes[*start as usize..*end as usize].fill(true);
            }
            for (at, held) in held.iter_mut().enumerate() {
                let end = ((at as u32 + 1) * MSS).min(last) as usize;
                let segment = &bytes[at * MSS as usize..end];
                if !*held && segment.iter().all(|byte| *byte) {
                    *held = true;
                    expected += segment.len() as u32;
                }
            }
            prop_assert_eq!(take(&mut flights, index, &blocks).delivered, expected);
            check(&flights, index);
        }
    }
}
