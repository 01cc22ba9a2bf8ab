//! Packets from fragments (RFC 791 section 3.2, RFC 8200 section 4.5), within bounds.
//!
//! Parts are copied into one block of the arena a packet, so fragments that never become whole hold
//! neither the link's buffers nor more memory than a fixed number of blocks. What does not fit a
//! block is refused: a host must take 1500 bytes (576 of IPv4), and ours takes ten times that.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use millstream_buf::{Arena, BLOCK_BYTES, IoBuf, IoBufMut, SizeClass};
use millstream_timer::Instant;
use millstream_wire::ipv4::Protocol;
use millstream_wire::{ethernet, ipv4, ipv6};

/// Packets under way at most; see [`Reassembly::make_room`] for who gives way.
pub(crate) const PACKETS_MAX: usize = 32;
/// Packets of one source at most; its oldest gives way.
const SOURCE_PACKETS_MAX: usize = 8;
/// Runs of bytes without a gap that one packet may consist of meanwhile.
const RUNS_MAX: usize = 16;
/// How long parts wait for the others: Linux's 30 s for IPv4 (RFC 1122 3.3.2 asks for a time in
/// that order), RFC 8200's 60 s for IPv6.
const IPV4_WAIT_NANOS: u64 = 30_000_000_000;
const IPV6_WAIT_NANOS: u64 = 60_000_000_000;

/// Bytes before the parts: the headers of the whole packet, without options and extensions.
const fn headers_len(is_ipv4: bool) -> usize {
    ethernet::HEADER_LEN + if is_ipv4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

/// What the fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PacketName {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ident: u32,
    /// Of IPv4 the protocol is part of the name; of IPv6 it is the first fragment's alone.
    pub protocol: Option<Protocol>,
}

/// A fragment, its headers read and checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub name: PacketName,
    pub offset: usize,
    pub more: bool,
    /// What the whole packet's payload is, as the first fragment says.
    pub protocol: Protocol,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The frame's first 12 bytes: to and from whom on the link.
    pub stations: [u8; 12],
    pub bytes: &'a [u8],
    /// The packet as it came, from its IP header on: an error would quote it.
    pub packet: &'a [u8],
}

/// Why a fragment was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartDrop {
    /// It contradicts itself or those before it in length.
    Malformed,
    /// It overlaps others, or others of its packet did (RFC 5722).
    Overlap,
    /// The whole would not fit a block.
    TooLong,
    /// No block is free, or the packet comes in too many pieces.
    NoRoom,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Kept; others are missing.
    Kept,
    /// The packet is whole: a frame, as if it had come in one piece.
    Whole(IoBuf),
    Dropped(PartDrop),
}

/// Bytes of an expired packet's first fragment that an error can quote: of IPv6 its two headers and
/// the ports behind them.
pub(crate) const QUOTE_LEN: usize = 56;

/// A packet that did not become whole in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub name: PacketName,
    /// Whom to tell; `None` if the first fragment never came (RFC 1122 3.3.2, RFC 8200 4.5), or what
    /// came was refused.
    pub quote: Option<ArrayVec<u8, QUOTE_LEN>>,
    /// The station that sent the first fragment.
    pub station: [u8; 6],
}

struct Entry {
    name: PacketName,
    /// `None`: refused; fragments that still come are dropped until the time is up.
    block: Option<IoBufMut>,
    /// Bytes that are there, as runs in order that neither touch nor overlap.
    runs: ArrayVec<(u16, u16), RUNS_MAX>,
    /// Bytes of the whole, once the last part is there.
    total: Option<usize>,
    quote: Option<ArrayVec<u8, QUOTE_LEN>>,
    protocol: Protocol,
    tos: u8,
    ttl: u8,
    stations: [u8; 12],
    until: Instant,
}

/// Packets that are being put together.
pub(crate) struct Reassembly {
    /// In order of their beginning; never grows.
    entries: Vec<Entry>,
    /// Packets that gave way to newer ones.
    pub evicted: u64,
}

impl Reassembly {
    pub fn new() -> Self {
        Self { entries: Vec::with_capacity(PACKETS_MAX), evicted: 0 }
    }

    /// Takes a fragment.
    pub fn take(&mut self, part: &Part<'_>, arena: &Arena, now: Instant) -> Taken {
        match self.try_take(part, arena, now) {
            Ok(taken) => taken,
            Err(drop) => Taken::Dropped(drop),
        }
    }

    fn try_take(
        &mut self,
        part: &Part<'_>,
        arena: &Arena,
        now: Instant,
    ) -> Result<Taken, PartDrop> {
        let is_ipv4 = part.name.src.is_ipv4();
        let (start, end) = (part.offset, part.offset + part.bytes.len());
        // All but the last are of whole units of 8 bytes, and none is empty.
        if part.bytes.is_empty() || (part.more && !part.bytes.len().is_multiple_of(8)) {
            return Err(PartDrop::Malformed);
        }
        if end + headers_len(is_ipv4) > BLOCK_BYTES {
            return Err(PartDrop::TooLong);
        }
        let at = match self.entries.iter().position(|entry| entry.name == part.name) {
            Some(at) => at,
            None => self.begin(part, arena, now)?,
        };
        let Some(entry) = self.entries.get_mut(at) else { return Err(PartDrop::NoRoom) };
        if let Err(drop) = entry.add(part, start, end, headers_len(is_ipv4)) {
            // RFC 5722: the whole packet goes, and what still comes of it.
            entry.block = None;
            return Err(drop);
        }
        if entry.is_whole() {
            let entry = self.entries.remove(at);
            return entry.finish(is_ipv4).map(Taken::Whole).ok_or(PartDrop::Malformed);
        }
        Ok(Taken::Kept)
    }

    fn begin(&mut self, part: &Part<'_>, arena: &Arena, now: Instant) -> Result<usize, PartDrop> {
        let source = part.name.src;
        let theirs = || self.entries.iter().enumerate().filter(|(_, e)| e.name.src == source);
        if theirs().count() >= SOURCE_PACKETS_MAX {
            if let Some((at, _)) = theirs().next() {
                self.evict(at);
            }
        } else if self.entries.len() >= PACKETS_MAX {
            self.make_room();
        }
        let block = match arena.alloc(SizeClass::Block) {
            Some(block) => block,
            None => {
                // Ours are among those that are in use.
                self.make_room();
                arena.alloc(SizeClass::Block).ok_or(PartDrop::NoRoom)?
            }
        };
        let wait = if part.name.src.is_ipv4() { IPV4_WAIT_NANOS } else { IPV6_WAIT_NANOS };
        self.entries.push(Entry {
            name: part.name,
            block: Some(block),
            runs: ArrayVec::new(),
            total: None,
            quote: None,
            protocol: part.protocol,
            tos: part.tos,
            ttl: part.ttl,
            stations: part.stations,
            until: now.plus_nanos(wait),
        });
        Ok(self.entries.len() - 1)
    }

    /// Has a packet give way to a newer one: one that is refused anyway, else the oldest of the source
    /// that has most, so that a single source cannot push out all others.
    fn make_room(&mut self) {
        let packets_of = |source| self.entries.iter().filter(|e| e.name.src == source).count();
        let mut goes: Option<(usize, usize)> = None;
        for (at, entry) in self.entries.iter().enumerate() {
            let rank = if entry.block.is_none() { usize::MAX } else { packets_of(entry.name.src) };
            if goes.is_none_or(|(_, most)| rank > most) {
                goes = Some((at, rank));
            }
        }
        if let Some((at, _)) = goes {
            self.evict(at);
        }
    }

    fn evict(&mut self, at: usize) {
        self.entries.remove(at);
        self.evicted += 1;
    }

    /// Gives up the next packet whose time is over.
    pub fn expire(&mut self, now: Instant) -> Option<Expired> {
        let at = self.entries.iter().position(|entry| entry.until <= now)?;
        let entry = self.entries.remove(at);
        let refused = entry.block.is_none();
        let mut station = [0; 6];
        station.copy_from_slice(&entry.stations[6..]);
        Some(Expired { name: entry.name, quote: entry.quote.filter(|_| !refused), station })
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        self.entries.iter().map(|entry| entry.until).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

impl Entry {
    fn add(
        &mut self,
        part: &Part<'_>,
        start: usize,
        end: usize,
        headers: usize,
    ) -> Result<(), PartDrop> {
        let block = self.block.as_mut().ok_or(PartDrop::Overlap)?;
        let last_end = self.runs.last().map_or(0, |run| usize::from(run.1));
        let fits = match (self.total, part.more) {
            (Some(total), true) => end < total,
            (Some(total), false) => end == total,
            (None, true) => true,
            (None, false) => last_end <= end,
        };
        if !fits {
            return Err(PartDrop::Malformed);
        }
        let room = block.get_mut(headers + start..headers + end).ok_or(PartDrop::TooLong)?;
        let (start, end) = (start as u16, end as u16);
        // The first run that ends behind our start.
        let at = self.runs.iter().position(|run| run.1 > start).unwrap_or(self.runs.len());
        if let Some(run) = self.runs.get(at)
            && run.0 < end
        {
            // RFC 8200 section 4.5 allows to pass over an exact copy, as a network may make one.
            let is_copy = run.0 <= start && end <= run.1 && *room == *part.bytes;
            return if is_copy { Ok(()) } else { Err(PartDrop::Overlap) };
        }
        room.copy_from_slice(part.bytes);
        let joins_before = at > 0 && self.runs[at - 1].1 == start;
        let joins_behind = self.runs.get(at).is_some_and(|run| run.0 == end);
        match (joins_before, joins_behind) {
            (true, true) => {
                self.runs[at - 1].1 = self.runs[at].1;
                self.runs.remove(at);
            }
            (true, false) => self.runs[at - 1].1 = end,
            (false, true) => self.runs[at].0 = start,
            (false, false) => {
                self.runs.try_insert(at, (start, end)).map_err(|_| PartDrop::NoRoom)?;
            }
        }
        if !part.more {
            self.total = Some(usize::from(end));
        }
        if start == 0 {
            self.protocol = part.protocol;
            self.stations = part.stations;
            self.ttl = part.ttl;
            let quoted = part.packet.get(..QUOTE_LEN.min(part.packet.len())).unwrap_or_default();
            self.quote = ArrayVec::try_from(quoted).ok();
        }
        self.tos = merge_ecn(self.tos, part.tos);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        match (self.runs.as_slice(), self.total) {
            ([(0, end)], Some(total)) => usize::from(*end) == total,
            _ => false,
        }
    }

    fn finish(self, is_ipv4: bool) -> Option<IoBuf> {
        let (headers, total) = (headers_len(is_ipv4), self.total?);
        let mut block = self.block?;
        let head = block.get_mut(..headers)?;
        head[..12].copy_from_slice(&self.stations);
        match (self.name.src, self.name.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let ethertype = ethernet::EtherType::IPV4.0.to_be_bytes();
                head[12..ethernet::HEADER_LEN].copy_from_slice(&ethertype);
                ipv4::Repr {
                    tos: self.tos,
                    ident: self.name.ident as u16,
                    dont_fragment: false,
                    ttl: self.ttl,
                    protocol: self.protocol,
                    src,
                    dst,
                    payload_len: total as u16,
                }
                .emit(&mut head[ethernet::HEADER_LEN..]);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ethertype = ethernet::EtherType::IPV6.0.to_be_bytes();
                head[12..ethernet::HEADER_LEN].copy_from_slice(&ethertype);
                ipv6::Header {
                    traffic_class: self.tos,
                    flow_label: 0,
                    payload_len: total as u16,
                    next_header: self.protocol,
                    hop_limit: self.ttl,
                    src,
                    dst,
                }
                .emit(&mut head[ethernet::HEADER_LEN..]);
            }
            _ => return None,
        }
        Some(block.freeze(0..headers + total))
    }
}

/// RFC 3168 section 5.3: a fragment that met congestion marks the whole. Where fragments disagree
/// whether the transport knows ECN, it does not.
fn merge_ecn(known: u8, new: u8) -> u8 {
    use ipv4::Ecn;
    match (Ecn::of(known), Ecn::of(new)) {
        (a, b) if a == b => known,
        (Ecn::NotEct, _) | (_, Ecn::NotEct) => known & !3,
        (Ecn::Ce, _) | (_, Ecn::Ce) => known | 3,
        _ => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_buf::{ArenaConfig, HugePages};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const SRC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const DST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    fn arena(blocks: usize) -> Arena {
        let config = ArenaConfig { frames: 8, blocks, huge_pages: HugePages::Never };
        Arena::new(&config).unwrap()
    }

    fn name6(ident: u32) -> PacketName {
        PacketName { src: SRC6.into(), dst: DST6.into(), ident, protocol: None }
    }

    fn name4(ident: u32) -> PacketName {
        PacketName {
            src: Ipv4Addr::new(192, 0, 2, 1).into(),
            dst: Ipv4Addr::new(192, 0, 2, 2).into(),
            ident,
            protocol: Some(Protocol::UDP),
        }
    }

    fn part(name: PacketName, offset: usize, more: bool, bytes: &[u8]) -> Part<'_> {
        Part {
            name,
            offset,
            more,
            protocol: Protocol::UDP,
            tos: 2,
            ttl: 60,
            stations: [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2],
            bytes,
            packet: bytes,
        }
    }

    const ZERO: Instant = Instant::ZERO;

    #[test]
    fn both_families_become_whole_frames() {
        let arena = arena(4);
        let mut all = Reassembly::new();
        let (first, second) = ([7; 16], [9; 5]);
        for name in [name4(5), name6(5)] {
            assert_eq!(all.take(&part(name, 16, false, &second), &arena, ZERO), Taken::Kept);
            let taken = all.take(&part(name, 0, true, &first), &arena, ZERO);
            let Taken::Whole(frame) = taken else { panic!("{taken:?}") };
            let header = ethernet::Header::parse(&frame).unwrap();
            assert_eq!((header.dst.0, header.src.0), ([1; 6], [2; 6]));
            let packet = header.payload(&frame);
            let payload = if name.src.is_ipv4() {
                let header = ipv4::Header::parse(packet).unwrap();
                assert!(ipv4::verify_checksum(&header, packet) && !header.is_fragment());
                assert_eq!((header.tos, header.ttl, header.protocol), (2, 60, Protocol::UDP));
                header.payload(packet)
            } else {
                let header = ipv6::Header::parse(packet).unwrap();
                assert_eq!((header.src, header.dst), (SRC6, DST6));
                assert_eq!((header.traffic_class, header.hop_limit), (2, 60));
                header.payload(packet)
            };
            assert_eq!(payload, [&first[..], &second].concat());
        }
        assert_eq!(all.entries.len(), 0);
    }

    #[test]
    fn an_overlap_drops_the_packet_and_what_still_comes_of_it() {
        let arena = arena(4);
        let mut all = Reassembly::new();
        let bytes = [7; 16];
        all.take(&part(name6(1), 0, true, &bytes), &arena, ZERO);
        // An exact copy of what is there does no harm.
        assert_eq!(all.take(&part(name6(1), 8, true, &bytes[..8]), &arena, ZERO), Taken::Kept);
        let over = all.take(&part(name6(1), 8, true, &bytes), &arena, ZERO);
        assert_eq!(over, Taken::Dropped(PartDrop::Overlap));
        let rest = all.take(&part(name6(1), 24, false, &bytes), &arena, ZERO);
        assert_eq!(rest, Taken::Dropped(PartDrop::Overlap));
        assert_eq!(arena.free(SizeClass::Block), 4, "its block is free at once");
        let other = [8; 8];
        all.take(&part(name6(2), 0, true, &bytes), &arena, ZERO);
        let over = all.take(&part(name6(2), 8, true, &other), &arena, ZERO);
        assert_eq!(over, Taken::Dropped(PartDrop::Overlap), "no copy");
        let after = ZERO.plus_nanos(IPV6_WAIT_NANOS);
        assert_eq!(all.expire(after).unwrap().quote, None, "refused: nobody is told");
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let arena = arena(8);
        let mut all = Reassembly::new();
        let bytes = [7; 24];
        let mut refused = |parts: &[(usize, bool, usize)], ident| {
            let mut last = Taken::Kept;
            for &(offset, more, len) in parts {
                last = all.take(&part(name6(ident), offset, more, &bytes[..len]), &arena, ZERO);
            }
            last
        };
        let malformed = Taken::Dropped(PartDrop::Malformed);
        assert_eq!(refused(&[(0, true, 7)], 1), malformed, "no whole unit");
        assert_eq!(refused(&[(8, false, 0)], 2), malformed, "nothing");
        assert_eq!(refused(&[(16, false, 8), (24, true, 8)], 3), malformed, "behind the end");
        assert_eq!(refused(&[(16, false, 8), (24, false, 8)], 4), malformed, "two ends");
        assert_eq!(refused(&[(24, true, 8), (8, false, 8)], 5), malformed, "an end before");
        assert_eq!(refused(&[(16, false, 8), (16, true, 8)], 6), malformed, "more than the end");
        let too_long = refused(&[(65_528, false, 8)], 7);
        assert_eq!(too_long, Taken::Dropped(PartDrop::TooLong), "the ping of death");
    }

    #[test]
    fn bounded_in_packets_pieces_blocks_and_time() {
        let arena = arena(PACKETS_MAX + 2);
        let mut all = Reassembly::new();
        let bytes = [7; 8];
        // As many of each source as it may have at most, but one.
        let name = |ident: u32| {
            let src = Ipv4Addr::from_bits(0xc000_0203 + ident / (SOURCE_PACKETS_MAX as u32 - 1));
            PacketName { src: src.into(), ..name4(ident) }
        };
        for ident in 0..PACKETS_MAX as u32 + 3 {
            all.take(&part(name(ident), 0, true, &bytes), &arena, ZERO);
        }
        assert_eq!((all.entries.len(), all.evicted), (PACKETS_MAX, 3));
        for run in 1..RUNS_MAX {
            let taken = all.take(&part(name(9), run * 16, true, &bytes), &arena, ZERO);
            assert_eq!(taken, Taken::Kept);
        }
        let taken = all.take(&part(name(9), RUNS_MAX * 16, true, &bytes), &arena, ZERO);
        assert_eq!(taken, Taken::Dropped(PartDrop::NoRoom));
        let after = all.next_deadline();
        assert_eq!(after, ZERO.plus_nanos(IPV4_WAIT_NANOS));
        assert_eq!(all.expire(ZERO), None);
        let mut quotes = 0;
        while let Some(expired) = all.expire(after) {
            assert_eq!(expired.station, [2; 6]);
            quotes += usize::from(expired.quote.is_some_and(|quote| quote[..] == bytes));
        }
        assert_eq!(quotes, PACKETS_MAX - 1, "all but the refused one");
        assert_eq!(arena.free(SizeClass::Block), PACKETS_MAX + 2);
        let held: Vec<_> = std::iter::from_fn(|| arena.alloc(SizeClass::Block)).collect();
        let taken = all.take(&part(name4(1), 0, true, &bytes), &arena, ZERO);
        assert_eq!((taken, held.len()), (Taken::Dropped(PartDrop::NoRoom), PACKETS_MAX + 2));
    }

    #[test]
    fn a_source_pushes_out_its_own_packets_first() {
        let arena = arena(12);
        let mut all = Reassembly::new();
        let bytes = [7; 8];
        let idents = |all: &Reassembly| -> Vec<u32> {
            all.entries.iter().map(|entry| entry.name.ident).collect()
        };
        all.take(&part(name6(77), 0, true, &bytes), &arena, ZERO);
        for ident in 0..100 {
            all.take(&part(name4(ident), 0, true, &bytes), &arena, ZERO);
        }
        assert_eq!(idents(&all), [77, 92, 93, 94, 95, 96, 97, 98, 99]);
        // Without a block left, too, the busiest makes room; one that is refused before all others.
        let held: Vec<_> = std::iter::from_fn(|| arena.alloc(SizeClass::Block)).collect();
        assert_eq!(held.len(), 3);
        let taken = all.take(&part(name6(78), 0, true, &bytes), &arena, ZERO);
        assert_eq!((taken, idents(&all)[..2].to_vec()), (Taken::Kept, vec![77, 93]));
        let overlap = part(name6(78), 0, true, &[8; 8]);
        assert_eq!(all.take(&overlap, &arena, ZERO), Taken::Dropped(PartDrop::Overlap));
        let blocks: Vec<_> = std::iter::from_fn(|| arena.alloc(SizeClass::Block)).collect();
        assert_eq!(blocks.len(), 1);
        all.make_room();
        assert!(!idents(&all).contains(&78));
    }

    #[test]
    fn congestion_marks_the_whole() {
        assert_eq!(merge_ecn(0xb2, 3), 0xb3);
        assert_eq!(merge_ecn(3, 2), 3);
        assert_eq!(merge_ecn(3, 0), 0);
        assert_eq!(merge_ecn(1, 2), 1);
    }

    proptest! {
        /// Parts in any order, some twice, give the packet, or nothing if one is missing.
        #[test]
        fn any_order_gives_the_packet(
            cuts in prop::collection::btree_set(1usize..40, 0..12), tail in 1usize..9,
            order in any::<prop::sample::Index>().prop_map(|i| i.index(usize::MAX)), missing: Option<prop::sample::Index>,
            ipv4: bool,
        ) {
            let arena = arena(2);
            let len = 40 * 8 + tail;
            let whole: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let mut edges: Vec<usize> = cuts.iter().map(|cut| cut * 8).collect();
            edges.insert(0, 0);
            edges.push(len);
            let mut parts: Vec<(usize, usize)> = edges.windows(2).map(|w| (w[0], w[1])).collect();
            let missing = missing.map(|index| index.index(parts.len()));
            if let Some(missing) = missing { parts.remove(missing); }
            let mut seed = order;
            for i in (1..parts.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                parts.swap(i, (seed >> 33) % (i + 1));
            }
            let name = if ipv4 { name4(3) } else { name6(3) };
            let mut all = Reassembly::new();
            let mut result = None;
            for (n, &(start, end)) in parts.iter().enumerate() {
                let part = part(name, start, end < len, &whole[start..end]);
                match all.take(&part, &arena, ZERO) {
                    Taken::Whole(frame) => result = Some(frame),
                    taken => prop_assert_eq!(taken, Taken::Kept),
                }
                if n + 1 < parts.len() && n % 2 == 0 {
                    prop_assert_eq!(all.take(&part, &arena, ZERO), Taken::Kept);
                }
            }
            prop_assert_eq!(result.is_some(), missing.is_none());
            if let Some(frame) = result {
                prop_assert_eq!(&frame[headers_len(ipv4)..], &whole[..]);
            }
        }
    }
}
