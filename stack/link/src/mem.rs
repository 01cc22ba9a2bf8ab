//! An in-memory link: two ends in one thread, one copy a frame.
//!
//! Each direction has its own small arena of frame buffers (256 of 2 KiB fit a second-level cache),
//! into which a sent frame is copied once; the receiver gets handles on those buffers. When all are
//! in use the sender sees a full queue, as with a NIC's ring.

use std::cell::RefCell;
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
pub struct MemConfig {
    /// Buffers of 2 KiB a direction.
    pub slots: usize,
    /// Largest IP packet in bytes, at most 1986.
    pub mtu: u16,
    /// Pretend that the "NIC" computes and verifies checksums: frames carry none.
    pub checksum_offload: bool,
}

impl Default for MemConfig {
    fn default() -> Self {
        Self { slots: 256, mtu: 1500, checksum_offload: false }
    }
}

/// One end of an in-memory link.
pub struct MemLink {
    capabilities: Capabilities,
    rx_checksum: RxChecksum,
    /// Buffers that this end fills.
    arena: Arena,
    /// The buffer of the next frame.
    lent: Option<IoBufMut>,
    outbound: Rc<RefCell<VecDeque<IoBuf>>>,
    inbound: Rc<RefCell<VecDeque<IoBuf>>>,
    stats: LinkStats,
}

/// Makes both ends. Their addresses are 02:00:00:00:00:01 and 02:00:00:00:00:02.
///
/// # Errors
/// [`ArenaError`] if there is no memory for the rings.
pub fn pair(config: MemConfig) -> Result<(MemLink, MemLink), ArenaError> {
    let a_to_b = Rc::new(RefCell::new(VecDeque::with_capacity(config.slots)));
    let b_to_a = Rc::new(RefCell::new(VecDeque::with_capacity(config.slots)));
    let end = |last: u8, outbound: &Rc<_>, inbound: &Rc<_>| -> Result<MemLink, ArenaError> {
        Ok(MemLink {
            capabilities: Capabilities {
                driver: "mem",
                mac: [2, 0, 0, 0, 0, last],
                mtu: config.mtu,
                tx_slices_max: usize::MAX,
                tx_ipv4_checksum: config.checksum_offload,
                tx_tcp_checksum: config.checksum_offload,
                tx_udp_checksum: config.checksum_offload,
                rx_checksum: config.checksum_offload,
                tso_bytes_max: 0,
                copies_payload: true,
            },
            rx_checksum: if config.checksum_offload {
                RxChecksum::Good
            } else {
                RxChecksum::Unknown
            },
            arena: Arena::new(&ArenaConfig {
                frames: config.slots,
                blocks: 0,
                huge_pages: HugePages::Try,
            })?,
            lent: None,
            outbound: Rc::clone(outbound),
            inbound: Rc::clone(inbound),
            stats: LinkStats::default(),
        })
    };
    Ok((end(1, &a_to_b, &b_to_a)?, end(2, &b_to_a, &a_to_b)?))
}

impl Link for MemLink {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    #[inline]
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let mut inbound = self.inbound.borrow_mut();
        while !frames.is_full() {
            let Some(buf) = inbound.pop_front() else { break };
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += buf.len() as u64;
            frames.push(RxFrame { buf, checksum: self.rx_checksum });
        }
    }

    #[inline]
    fn tx_room(&mut self) -> usize {
        self.arena.free(SizeClass::Frame) + usize::from(self.lent.is_some())
    }

    #[inline]
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let room = self.lend().ok_or(TxError::Full)?;
        copy_short(room.get_mut(..frame.header.len()).ok_or(TxError::TooLong)?, frame.header);
        self.tx_lent(frame.header.len(), frame.payload, frame.offload)
    }

    #[inline]
    fn lend(&mut self) -> Option<&mut [u8; HEADER_MAX]> {
        if self.lent.is_none() {
            self.lent = self.arena.alloc(SizeClass::Frame);
        }
        self.lent.as_mut()?.first_chunk_mut()
    }

    #[inline]
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
            copy_short(slot.get_mut(end..next).ok_or(TxError::TooLong)?, slice);
            end = next;
        }
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += end as u64;
        self.stats.tx_copied_bytes += (end - header_len) as u64;
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

    fn frame<'a>(header: &'a [u8], payload: &'a [IoBuf]) -> TxFrame<'a> {
        TxFrame { header, payload, offload: Default::default() }
    }

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let (mut a, mut b) = pair(MemConfig::default()).unwrap();
        let payload = [IoBuf::from(vec![3, 4]), IoBuf::from(vec![5])];
        a.tx(&frame(&[1, 2], &payload)).unwrap();
        a.tx(&frame(&[9], &[])).unwrap();
        let mut frames = RxBurst::new();
        b.rx_burst(&mut frames);
        let got: Vec<_> = frames.iter().map(|f| f.buf.to_vec()).collect();
        assert_eq!(got, [vec![1, 2, 3, 4, 5], vec![9]]);
        assert_eq!((a.stats().tx_bytes, b.stats().rx_bytes), (6, 6));
    }

    #[test]
    fn a_held_frame_keeps_its_slot() {
        let (mut a, mut b) = pair(MemConfig { slots: 2, ..Default::default() }).unwrap();
        a.tx(&frame(&[1], &[])).unwrap();
        a.tx(&frame(&[2], &[])).unwrap();
        assert_eq!(a.tx(&frame(&[3], &[])), Err(TxError::Full));
        let mut frames = RxBurst::new();
        b.rx_burst(&mut frames);
        assert_eq!(a.tx(&frame(&[3], &[])), Err(TxError::Full), "the receiver holds both buffers");
        drop(frames);
        a.tx(&frame(&[3], &[])).unwrap();
    }

    #[test]
    fn too_long_is_refused_whole() {
        let (mut a, mut b) = pair(MemConfig::default()).unwrap();
        assert_eq!(a.tx(&frame(&[1], &[IoBuf::from(vec![0; 2048])])), Err(TxError::TooLong));
        let mut frames = RxBurst::new();
        b.rx_burst(&mut frames);
        assert!(frames.is_empty());
    }
}
