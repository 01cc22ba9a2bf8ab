//! A link that looks to the processor as a card with DMA does: it moves headers, and never touches the
//! payload.
//!
//! Both ends live in one thread. A frame's headers are copied into a buffer of the link; of its payload
//! only the length arrives, and the handles are let go of as soon as the frame has been "sent". So what an
//! end spends is what it would spend over a card, and a processor that reads or writes a byte of payload
//! does so on its own account. The receiver sees whatever the link's buffer held: for measurements and for
//! tests that payload is not touched, not for traffic. The "card" says of every frame that its checksums
//! are right; whether it also computes those of frames to be sent is chosen.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use millstream_buf::{
    Arena, ArenaConfig, ArenaError, HugePages, IoBuf, IoBufMut, SizeClass, copy_short,
};

use crate::{
    Capabilities, HEADER_MAX, Link, LinkStats, RxBurst, RxChecksum, RxFrame, TxError, TxFrame,
    TxOffload,
};

/// How a [`pair`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct HandoverConfig {
    /// Buffers of 2 KiB a direction.
    pub slots: usize,
    /// Largest IP packet in bytes, at most 1986.
    pub mtu: u16,
    /// The "card" computes checksums; else the stack does, from the payload or from what it remembers.
    pub checksum_offload: bool,
}

impl Default for HandoverConfig {
    fn default() -> Self {
        Self { slots: 512, mtu: 1500, checksum_offload: true }
    }
}

/// One end.
pub struct HandoverLink {
    capabilities: Capabilities,
    arena: Arena,
    /// The buffer of the next frame.
    lent: Option<IoBufMut>,
    outbound: Rc<RefCell<VecDeque<IoBuf>>>,
    inbound: Rc<RefCell<VecDeque<IoBuf>>>,
    carries: Rc<Cell<bool>>,
    stats: LinkStats,
}

impl HandoverLink {
    /// A switch that makes the link carry the payload of what this end sends, by copying it, for as long
    /// as it is on; off at first. For requests, and for warming up.
    pub fn carries(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.carries)
    }
}

/// Makes both ends. Their addresses are 02:00:00:00:00:01 and 02:00:00:00:00:02.
///
/// # Errors
/// [`ArenaError`] if there is no memory for the rings.
pub fn pair(config: HandoverConfig) -> Result<(HandoverLink, HandoverLink), ArenaError> {
    let a_to_b = Rc::new(RefCell::new(VecDeque::with_capacity(config.slots)));
    let b_to_a = Rc::new(RefCell::new(VecDeque::with_capacity(config.slots)));
    let end = |last: u8, outbound: &Rc<_>, inbound: &Rc<_>| -> Result<HandoverLink, ArenaError> {
        Ok(HandoverLink {
            capabilities: Capabilities {
                driver: "handover",
                mac: [2, 0, 0, 0, 0, last],
                mtu: config.mtu,
                tx_slices_max: usize::MAX,
                tx_ipv4_checksum: config.checksum_offload,
                tx_tcp_checksum: config.checksum_offload,
                tx_udp_checksum: config.checksum_offload,
                rx_checksum: true,
                tso_bytes_max: 0,
                copies_payload: false,
            },
            arena: Arena::new(&ArenaConfig {
                frames: config.slots,
                blocks: 0,
                huge_pages: HugePages::Try,
            })?,
            lent: None,
            outbound: Rc::clone(outbound),
            inbound: Rc::clone(inbound),
            carries: Rc::default(),
            stats: LinkStats::default(),
        })
    };
    Ok((end(1, &a_to_b, &b_to_a)?, end(2, &b_to_a, &a_to_b)?))
}

impl Link for HandoverLink {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let mut inbound = self.inbound.borrow_mut();
        while !frames.is_full() {
            let Some(buf) = inbound.pop_front() else { break };
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += buf.len() as u64;
            frames.push(RxFrame { buf, checksum: RxChecksum::Good });
        }
    }

    fn tx_room(&mut self) -> usize {
        self.arena.free(SizeClass::Frame) + usize::from(self.lent.is_some())
    }

    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let room = self.lend().ok_or(TxError::Full)?;
        copy_short(room.get_mut(..frame.header.len()).ok_or(TxError::TooLong)?, frame.header);
        self.tx_lent(frame.header.len(), frame.payload, frame.offload)
    }

    fn lend(&mut self) -> Option<&mut [u8; HEADER_MAX]> {
        if self.lent.is_none() {
            self.lent = self.arena.alloc(SizeClass::Frame);
        }
        self.lent.as_mut()?.first_chunk_mut()
    }

    fn tx_lent(
        &mut self,
        header_len: usize,
        payload: &[IoBuf],
        _offload: TxOffload,
    ) -> Result<(), TxError> {
        let Some(slot) = &mut self.lent else { return Err(TxError::Full) };
        let mut end = header_len;
        for slice in payload {
            let next = end + slice.len();
            let room = slot.get_mut(end..next).ok_or(TxError::TooLong)?;
            if self.carries.get() {
                copy_short(room, slice);
                self.stats.tx_copied_bytes += slice.len() as u64;
            }
            end = next;
        }
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += end as u64;
        if let Some(slot) = self.lent.take() {
            self.outbound.borrow_mut().push_back(slot.freeze(0..end));
        }
        Ok(())
    }

    fn flush(&mut self) {}

    fn stats(&self) -> LinkStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_lengths_arrive_and_nothing_is_copied() {
        let (mut a, mut b) = pair(HandoverConfig::default()).unwrap();
        let payload = [IoBuf::from(vec![3; 700]), IoBuf::from(vec![5; 61])];
        let frame = TxFrame { header: &[1, 2, 3], payload: &payload, offload: Default::default() };
        a.tx(&frame).unwrap();
        let mut frames = RxBurst::new();
        b.rx_burst(&mut frames);
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].buf.len(), &frames[0].buf[..3]), (764, &[1, 2, 3][..]));
        assert!(frames[0].buf[3..].iter().all(|&byte| byte == 0), "payload was carried");
        assert_eq!(a.stats().tx_copied_bytes, 0);
        assert!(payload[0].is_unique(), "the handle was let go of");

        a.carries().set(true);
        a.tx(&frame).unwrap();
        frames.clear();
        b.rx_burst(&mut frames);
        assert_eq!((frames[0].buf[3], frames[0].buf[763]), (3, 5));
        assert_eq!(a.stats().tx_copied_bytes, 761);
    }

    #[test]
    fn what_is_too_long_or_too_much_is_refused() {
        let (mut a, _b) = pair(HandoverConfig { slots: 1, ..HandoverConfig::default() }).unwrap();
        let long = [IoBuf::from(vec![0; 2048])];
        let frame = TxFrame { header: &[1], payload: &long, offload: Default::default() };
        assert_eq!(a.tx(&frame), Err(TxError::TooLong));
        let short = TxFrame { header: &[1], payload: &[], offload: Default::default() };
        assert_eq!((a.tx_room(), a.tx(&short)), (1, Ok(())));
        assert_eq!((a.tx_room(), a.tx(&short)), (0, Err(TxError::Full)));
    }
}
