//! Building the mbufs of a frame.
//!
//! Done here and not in the C shim: it writes some thirty fields of mbufs, and a call across
//! languages for each frame cannot be inlined.

use arrayvec::ArrayVec;
use dpdk_sys::{Mbuf, mbuf};
use millstream_buf::{IoBuf, retain};
use millstream_link::{TxFrame, TxOffload};

use crate::pool::record_of;
use crate::queue::STASH;

/// What happens to the payload.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload {
    /// An mbuf points at each slice.
    Attach,
    /// The bytes are copied behind the headers.
    Copy,
}

/// Turns frames into mbufs.
#[derive(Debug)]
pub(crate) struct Builder {
    /// Fresh mbufs of the transmit pool.
    pub stash: ArrayVec<*mut Mbuf, STASH>,
    /// Data bytes of each.
    pub room: u16,
    /// Whether a frame may have several.
    pub chains: bool,
    /// Slices attached since the home was emptied.
    pub attached: usize,
}

impl Builder {
    /// Mbufs that `bytes` fill if they are copied.
    #[inline]
    pub fn mbufs_for(&self, bytes: usize) -> usize {
        bytes.div_ceil(usize::from(self.room)).max(1)
    }

    /// Makes the chain of a frame; `None` if it has more bytes than one mbuf and may have no other.
    ///
    /// # Safety
    /// The stash has one mbuf and one for each slice to be attached, or [`Self::mbufs_for`] those
    /// to be copied; they are of a [`Pool`](crate::pool::Pool) whose home is bound to this thread.
    /// The headers fit in one.
    #[inline]
    pub unsafe fn build(&mut self, frame: &TxFrame<'_>, payload: Payload) -> Option<*mut Mbuf> {
        let header = frame.header;
        let total = header.len() + frame.payload.iter().map(|slice| slice.len()).sum::<usize>();
        if header.len() > usize::from(self.room) || (!self.chains && total > usize::from(self.room))
        {
            return None;
        }
        let m = self.stash.pop()?;
        let (flags, lengths) = flags(&frame.offload, header);
        // SAFETY: an mbuf out of its pool is ours alone; the headers fit by the check above.
        unsafe {
            fresh(m, flags, header.len() as u16);
            (*m).pkt_len = total as u32;
            (*m).tx_offload = lengths;
            let to = (*m).buf_addr.add(usize::from(mbuf::HEADROOM));
            std::ptr::copy_nonoverlapping(header.as_ptr(), to, header.len());
            match payload {
                Payload::Attach => self.attach(m, frame.payload),
                Payload::Copy => self.copy(m, frame.payload),
            }
        }
        Some(m)
    }

    /// Hangs an mbuf on `head` for each slice.
    ///
    /// # Safety
    /// As [`Self::build`].
    #[inline]
    unsafe fn attach(&mut self, head: *mut Mbuf, slices: &[IoBuf]) {
        let mut last = head;
        for slice in slices {
            if slice.is_empty() {
                continue;
            }
            let Some(m) = self.stash.pop() else { break };
            // SAFETY: the mbuf is ours alone and has a record beside it, whose callback and home
            // were written when the pool was made. The reference taken keeps the slice's bytes
            // unchanged until `payload_done` gives it back. Lengths fit 16 bits: a frame is
            // shorter than 64 KiB.
            unsafe {
                let record = record_of(m);
                let header = slice.header();
                retain(header);
                (*record).header = header.as_ptr();
                (*record).info.refcnt = 1;
                let len = slice.len() as u16;
                (*m).buf_addr = slice.as_ptr().cast_mut();
                (*m).buf_iova = slice.as_ptr() as u64;
                (*m).buf_len = len;
                (*m).data_off = 0;
                (*m).data_len = len;
                (*m).ol_flags = mbuf::EXTERNAL;
                (*m).shinfo = &raw mut (*record).info;
                (*last).next = m;
                (*head).nb_segs += 1;
            }
            last = m;
            self.attached += 1;
        }
    }

    /// Copies the slices behind the headers, into further mbufs where the first is full.
    ///
    /// # Safety
    /// As [`Self::build`].
    unsafe fn copy(&mut self, head: *mut Mbuf, slices: &[IoBuf]) {
        let mut last = head;
        for slice in slices {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                // SAFETY: `last` is ours; the copy ends inside its room.
                unsafe {
                    let used = (*last).data_len;
                    let count = rest.len().min(usize::from(self.room - used));
                    if count == 0 {
                        let Some(m) = self.stash.pop() else { return };
                        fresh(m, 0, 0);
                        (*last).next = m;
                        (*head).nb_segs += 1;
                        last = m;
                        continue;
                    }
                    let at = usize::from(mbuf::HEADROOM) + usize::from(used);
                    std::ptr::copy_nonoverlapping(rest.as_ptr(), (*last).buf_addr.add(at), count);
                    (*last).data_len = used + count as u16;
                    rest = &rest[count..];
                }
            }
        }
    }
}

/// Sets what a mempool leaves as it was. Reference count, chain and buffer are right already.
///
/// # Safety
/// `m` is out of its pool and ours alone.
#[inline]
unsafe fn fresh(m: *mut Mbuf, flags: u64, len: u16) {
    // SAFETY: by the caller's promise.
    unsafe {
        (*m).data_off = mbuf::HEADROOM;
        (*m).port = mbuf::PORT_INVALID;
        (*m).ol_flags = flags;
        (*m).packet_type = 0;
        (*m).pkt_len = u32::from(len);
        (*m).data_len = len;
        (*m).vlan_tci = 0;
        (*m).vlan_tci_outer = 0;
        (*m).tx_offload = 0;
    }
}

/// DPDK's flags and packed lengths for what is left to the device.
#[inline]
fn flags(offload: &TxOffload, header: &[u8]) -> (u64, u64) {
    // The lengths alone ask for nothing.
    let sums = offload.ipv4_checksum | offload.tcp_checksum | offload.udp_checksum;
    if !sums && offload.tso_mss == 0 {
        return (0, 0);
    }
    // The version nibble of the IP header.
    let version = header.get(usize::from(offload.l2_len)).map_or(0, |byte| byte >> 4);
    let mut flags = if version == 6 { mbuf::TX_IPV6 } else { mbuf::TX_IPV4 };
    if offload.ipv4_checksum {
        flags |= mbuf::TX_IP_CKSUM;
    }
    if offload.tcp_checksum {
        flags |= mbuf::TX_TCP_CKSUM;
    }
    if offload.udp_checksum {
        flags |= mbuf::TX_UDP_CKSUM;
    }
    if offload.tso_mss != 0 {
        flags |= mbuf::TX_TCP_SEG | mbuf::TX_TCP_CKSUM;
    }
    let lengths = mbuf::tx_offload(offload.l2_len, offload.l3_len, offload.l4_len, offload.tso_mss);
    (flags, lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_become_flags() {
        let mut header = [0u8; 54];
        header[14] = 0x45;
        assert_eq!(flags(&TxOffload::default(), &header), (0, 0));
        let lengths = TxOffload { l2_len: 14, l3_len: 20, l4_len: 20, ..TxOffload::default() };
        assert_eq!(flags(&lengths, &header), (0, 0), "nothing is asked for");
        let offload = TxOffload {
            l2_len: 14,
            l3_len: 20,
            l4_len: 20,
            ipv4_checksum: true,
            tso_mss: 1448,
            ..TxOffload::default()
        };
        let (bits, lengths) = flags(&offload, &header);
        let want = mbuf::TX_IPV4 | mbuf::TX_IP_CKSUM | mbuf::TX_TCP_SEG | mbuf::TX_TCP_CKSUM;
        assert_eq!((bits, lengths), (want, mbuf::tx_offload(14, 20, 20, 1448)));
        header[14] = 0x60;
        let offload =
            TxOffload { l2_len: 14, l3_len: 40, udp_checksum: true, ..Default::default() };
        assert_eq!(flags(&offload, &header).0, mbuf::TX_IPV6 | mbuf::TX_UDP_CKSUM);
    }
}
