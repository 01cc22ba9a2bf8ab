//! A queue pair as a [`Link`].

use std::cell::Cell;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use dpdk_sys::{Mbuf, mbuf, rte_mempool};
use millstream_buf::{Arena, IoBuf, PageKind};
use millstream_link::{
    BURST, Capabilities, HEADER_MAX, Link, LinkStats, RxBurst, RxChecksum, RxFrame, TxError,
    TxFrame,
};

use crate::error::PortError;
use crate::lcore::LcoreGuard;
use crate::log;
use crate::pool::{Pool, header_of};
use crate::port::Shared;
use crate::quirks::PayloadMemory;
use crate::tx::{Builder, Payload};

/// Frames that wait at most for the device.
pub(crate) const BATCH: usize = 64;
/// Frames after which the batch goes to the device unasked.
const FLUSH_AT: usize = 32;
/// Mbufs that a queue keeps at hand for sending.
pub(crate) const STASH: usize = 512;
/// Mbufs that are taken from the pool at a time.
const RESTOCK: usize = 32;
/// Frames that [`Link::tx_room`] promises if the pool has mbufs enough. What lies deep in the stash
/// is not touched in the ordinary run of things, so a large reserve costs no cache.
const ROOM: usize = 16;
/// Calls of [`Link::is_up`] between two looks at the device.
const LINK_CALLS: u32 = 1024;
/// Polls between the same.
const LINK_POLLS: u32 = 16_384;

/// A queue pair that no thread owns yet.
#[derive(Debug)]
pub struct UnboundQueue {
    pub(crate) shared: Arc<Shared>,
    pub(crate) capabilities: Capabilities,
    pub(crate) queue: u16,
    pub(crate) rx_pool: Pool,
    /// The pool that mbufs come from which a ring's other end sent; null on other devices.
    pub(crate) peer_pool: *mut rte_mempool,
    pub(crate) tx_pool: Pool,
    /// Data bytes of an mbuf of `tx_pool`.
    pub(crate) tx_room: u16,
    /// Bytes of the longest frame.
    pub(crate) frame_max: u32,
    pub(crate) chains: bool,
    pub(crate) copy_below: usize,
    /// The descriptor at which the device signals received frames.
    pub(crate) rx_event: Option<RawFd>,
}

// SAFETY: the one raw pointer is to a mempool, which any thread may use.
unsafe impl Send for UnboundQueue {}

impl UnboundQueue {
    /// Tells two ends of a ring that each receives what the other sent.
    pub(crate) fn face(left: &mut Self, right: &mut Self) {
        left.peer_pool = right.tx_pool.raw();
        right.peer_pool = left.tx_pool.raw();
    }

    /// Makes the calling thread the owner, for good, and gives it an lcore number.
    ///
    /// # Errors
    /// [`PortError::Threads`] if DPDK has no number left.
    pub fn bind(self) -> Result<PortQueue, PortError> {
        let lcore = LcoreGuard::new()?;
        self.tx_pool.home().bind();
        // A frame takes one mbuf for the headers and one for each slice, or as many as its bytes
        // fill if they are copied.
        let longest = self.frame_max.max(self.capabilities.tso_bytes_max + HEADER_MAX as u32);
        let frame_mbufs = if self.chains {
            let copied = longest.div_ceil(u32::from(self.tx_room)) as usize;
            (self.capabilities.tx_slices_max + 1).max(copied)
        } else {
            1
        };
        Ok(PortQueue {
            builder: Builder {
                room: self.tx_room,
                chains: self.chains,
                attached: 0,
                stash: ArrayVec::new(),
            },
            batch: ArrayVec::new(),
            frame_mbufs,
            offloaded: false,
            regions: Vec::new(),
            arenas: Vec::new(),
            link: Cell::new((true, 0)),
            polls: 0,
            stats: LinkStats::default(),
            taken: (0, 0),
            port: self.shared.port,
            queue: self.queue,
            rx_raw: self.rx_pool.raw(),
            peer_pool: self.peer_pool,
            frame_max: self.frame_max,
            copy_below: self.copy_below,
            rx_event: self.rx_event,
            rearm: true,
            capabilities: self.capabilities,
            shared: self.shared,
            rx_pool: self.rx_pool,
            tx_pool: self.tx_pool,
            _lcore: lcore,
        })
    }
}

/// A queue pair, owned by the thread that bound it.
///
/// Received frames are handles on the mbufs themselves. Sent payload is attached, not copied, where
/// [`Capabilities::copies_payload`] is false; the handles' references come back when the device, or
/// a ring's other end, has freed the frame.
pub struct PortQueue {
    /// Mbufs that are ready for the device, the first of each chain; oldest first.
    batch: ArrayVec<*mut Mbuf, BATCH>,
    builder: Builder,
    port: u16,
    queue: u16,
    rx_raw: *mut rte_mempool,
    peer_pool: *mut rte_mempool,
    frame_max: u32,
    copy_below: usize,
    rx_event: Option<RawFd>,
    /// The device wants to be asked anew for each signal, and counts them in an eventfd. Else the
    /// descriptor is that of the frames themselves, and readable as long as there are some (net_tap).
    rearm: bool,
    /// Mbufs that one frame takes at most.
    frame_mbufs: usize,
    /// Whether a frame of the batch asks the device for something.
    offloaded: bool,
    /// Frames and bytes that were taken, sent or still in the batch.
    taken: (u64, u64),
    stats: LinkStats,
    /// What [`Link::is_up`] says, and how often it was asked since the device was.
    link: Cell<(bool, u32)>,
    polls: u32,
    capabilities: Capabilities,
    /// Start and end of memory that the device may read.
    regions: Vec<(usize, usize)>,
    arenas: Vec<Arena>,
    // In this order: the device is closed before its pools retire, and the thread keeps its
    // number until all is done.
    shared: Arc<Shared>,
    rx_pool: Pool,
    tx_pool: Pool,
    _lcore: LcoreGuard,
}

impl PortQueue {
    /// Lets the device read payload from `arena`. Without it, a device that reads memory itself
    /// gets copies. Nothing is to be done for drivers that the CPU plays.
    ///
    /// The arena stays mapped as long as the process, since the device could read it until it is
    /// closed.
    ///
    /// # Errors
    /// [`PortError::Register`] if the memory cannot be locked or mapped.
    pub fn register(&mut self, arena: &Arena) -> Result<(), PortError> {
        if self.shared.quirks.memory != PayloadMemory::Registered || !self.shared.iova_va {
            return Ok(());
        }
        let (start, bytes) = arena.region();
        let page = match arena.pages() {
            PageKind::Huge => 2 << 20,
            PageKind::Base => 4096,
        };
        let address = start.as_ptr().cast();
        log::clear();
        let refused = |errno| PortError::Register { bytes, reason: log::reason(errno) };
        // SAFETY: the arena's mapping, which is kept for as long as the process (see `drop`).
        unsafe {
            let rc = dpdk_sys::rte_extmem_register(address, bytes, std::ptr::null_mut(), 0, page);
            let errno = dpdk_sys::shim_errno();
            // Another port may have registered it already.
            if rc != 0 && errno != libc::EEXIST {
                return Err(refused(errno));
            }
            let ours = rc == 0;
            let rc = dpdk_sys::shim_dma_map(self.port, address, bytes);
            if rc != 0 && rc != -libc::EEXIST {
                let refused = refused(rc);
                // The arena may go now, and DPDK must not keep what is no memory any more.
                if ours {
                    dpdk_sys::rte_extmem_unregister(address, bytes);
                }
                return Err(refused);
            }
        }
        self.regions.push((start.as_ptr() as usize, start.as_ptr() as usize + bytes));
        self.arenas.push(arena.clone());
        Ok(())
    }

    /// Receive buffers that are in the pool, neither in the device nor in the stack's hands. Slow.
    pub fn rx_buffers_free(&self) -> usize {
        self.rx_pool.free()
    }

    /// Mbufs for sending that are in the pool or at hand. Slow.
    pub fn tx_buffers_free(&self) -> usize {
        self.tx_pool.free() + self.builder.stash.len()
    }

    /// References on payload that other threads gave back and that could not be kept; 0.
    pub fn lost_references(&self) -> u64 {
        self.tx_pool.home().lost()
    }

    /// Turns a received mbuf into a frame, or drops and counts it.
    ///
    /// # Safety
    /// `m` was received from this queue and nobody else has it.
    #[inline]
    unsafe fn receive(&mut self, m: *mut Mbuf) -> Option<RxFrame> {
        // SAFETY: ours alone by the caller's promise.
        let head = unsafe { &*m };
        let (offset, len) = (u32::from(head.data_off), u32::from(head.data_len));
        let checksum = checksum(head.ol_flags, self.capabilities.rx_checksum);
        let ours = head.pool == self.rx_raw || head.pool == self.peer_pool;
        let plain = head.nb_segs == 1
            && head.refcnt == 1
            && head.ol_flags & (mbuf::EXTERNAL | mbuf::INDIRECT) == 0
            && offset + len <= u32::from(head.buf_len);
        let buf = if ours && plain {
            // SAFETY: an mbuf of a `Pool` has a header, which has no handle while the mbuf is
            // DPDK's; the extent was just checked against the buffer's.
            unsafe { IoBuf::from_foreign(header_of(m), offset, len) }
        } else {
            // SAFETY: as the caller promises.
            unsafe { self.join(m)? }
        };
        self.stats.rx_frames += 1;
        self.stats.rx_bytes += buf.len() as u64;
        Some(RxFrame { buf, checksum })
    }

    /// Copies a chain, or a buffer that is not ours, into one buffer that is, and frees it.
    ///
    /// # Safety
    /// As [`Self::receive`].
    #[cold]
    unsafe fn join(&mut self, m: *mut Mbuf) -> Option<IoBuf> {
        let mut fresh = std::ptr::null_mut();
        // SAFETY: room for one pointer; the pool is never freed.
        let rc = unsafe { dpdk_sys::shim_mbuf_get_bulk(self.rx_raw, &mut fresh, 1) };
        if rc != 0 {
            self.stats.rx_missed += 1;
            // SAFETY: ours alone by the caller's promise.
            unsafe { dpdk_sys::shim_mbuf_free(m) };
            return None;
        }
        // SAFETY: `fresh` is ours and in its pool's state; each segment's data lies inside its
        // buffer; the copy stays below `room`.
        unsafe {
            let room = usize::from((*fresh).buf_len.saturating_sub(mbuf::HEADROOM));
            let to = (*fresh).buf_addr.add(usize::from(mbuf::HEADROOM));
            let mut len = 0;
            let mut fits = true;
            let mut segment = m;
            while !segment.is_null() && fits {
                let count = usize::from((*segment).data_len);
                fits = len + count <= room;
                if fits {
                    let from = (*segment).buf_addr.add(usize::from((*segment).data_off));
                    std::ptr::copy_nonoverlapping(from, to.add(len), count);
                    len += count;
                }
                segment = (*segment).next;
            }
            dpdk_sys::shim_mbuf_free(m);
            if !fits {
                self.stats.rx_errors += 1;
                dpdk_sys::shim_mbuf_put(fresh);
                return None;
            }
            self.stats.rx_copied_bytes += len as u64;
            Some(IoBuf::from_foreign(header_of(fresh), u32::from(mbuf::HEADROOM), len as u32))
        }
    }

    /// Whether the device can read the slice where it is.
    #[inline]
    fn reachable(&self, slice: &IoBuf) -> bool {
        match self.shared.quirks.memory {
            PayloadMemory::Any => true,
            PayloadMemory::OwnOnly => false,
            PayloadMemory::Registered => {
                let start = slice.as_ptr() as usize;
                self.regions
                    .iter()
                    .any(|region| region.0 <= start && start + slice.len() <= region.1)
            }
        }
    }

    /// Fills the stash if it has not `count` mbufs; whether it has now.
    #[inline]
    fn stock(&mut self, count: usize) -> bool {
        self.builder.stash.len() >= count || self.restock(count)
    }

    #[cold]
    fn restock(&mut self, count: usize) -> bool {
        let stash = &mut self.builder.stash;
        let have = stash.len();
        let need = count.saturating_sub(have);
        // Few at a time: the pool gives the last ones freed first, so the same few hundred lines
        // of memory stay in the first-level cache. If the pool is low, just what is needed.
        for want in [need.max(RESTOCK).min(STASH - have), need] {
            // SAFETY: `want` pointers fit behind the `have` that the stash holds; if the call
            // succeeds all of them were written.
            unsafe {
                let to = stash.as_mut_ptr().add(have);
                if dpdk_sys::shim_mbuf_get_bulk(self.tx_pool.raw(), to, want as u32) == 0 {
                    stash.set_len(have + want);
                    break;
                }
            }
        }
        stash.len() >= count
    }

    /// Takes the first `count` frames out of the batch.
    fn shift(&mut self, count: usize) {
        self.batch.drain(..count.min(self.batch.len()));
    }

    fn send_batch(&mut self) {
        if self.offloaded {
            self.prepare();
        }
        let count = self.batch.len() as u16;
        if count == 0 {
            return;
        }
        // SAFETY: `count` mbufs that are ours; those that are sent are the device's from now on and
        // are removed from the batch.
        let sent = unsafe {
            dpdk_sys::shim_tx_burst(self.port, self.queue, self.batch.as_mut_ptr(), count)
        };
        if sent == count {
            self.batch.clear();
            self.offloaded = false;
        } else {
            self.shift(usize::from(sent));
        }
    }

    /// Lets the driver check frames that ask for offloads and put pseudo-header sums where it wants
    /// them. Those that it refuses are dropped and counted.
    #[cold]
    fn prepare(&mut self) {
        let mut good = 0;
        while good < self.batch.len() {
            let count = (self.batch.len() - good) as u16;
            // SAFETY: `count` mbufs from index `good` on are ours.
            let passed = unsafe {
                let first = self.batch.as_mut_ptr().add(good);
                dpdk_sys::shim_tx_prepare(self.port, self.queue, first, count)
            };
            good += usize::from(passed);
            if passed < count {
                let refused = self.batch.remove(good);
                self.drop_taken(refused);
            }
        }
    }

    /// Frees a frame that was taken and will not be sent.
    fn drop_taken(&mut self, m: *mut Mbuf) {
        self.stats.tx_errors += 1;
        self.taken.0 -= 1;
        // SAFETY: a chain out of the batch, ours alone.
        unsafe {
            self.taken.1 -= u64::from((*m).pkt_len);
            dpdk_sys::shim_mbuf_free(m);
        }
    }

    /// Gives back the references that other threads let go of; see `Home::capacity_for`.
    #[inline]
    fn collect(&mut self) {
        let home = self.tx_pool.home();
        if !home.is_empty() {
            home.drain();
        }
        self.builder.attached = 0;
    }
}

impl Link for PortQueue {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    #[inline]
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(LINK_POLLS) {
            // The next who asks for the carrier gets a fresh answer.
            self.link.set((self.link.get().0, 0));
        }
        let room = frames.remaining_capacity();
        if room == 0 {
            return;
        }
        let mut mbufs = [std::ptr::null_mut::<Mbuf>(); BURST];
        // SAFETY: `room` is at most `BURST`, the length of the array.
        let count = unsafe {
            dpdk_sys::shim_rx_burst(self.port, self.queue, mbufs.as_mut_ptr(), room as u16)
        };
        for &m in &mbufs[..usize::from(count).min(room)] {
            // SAFETY: just received, and looked at once.
            if let Some(frame) = unsafe { self.receive(m) } {
                frames.push(frame);
            }
        }
    }

    #[inline]
    fn tx_room(&mut self) -> usize {
        if self.batch.is_full() {
            self.flush();
        }
        let free = self.batch.remaining_capacity();
        let reserve = (self.frame_mbufs * ROOM).min(STASH);
        if free == 0 || !(self.stock(reserve) || self.stock(self.frame_mbufs)) {
            return 0;
        }
        free.min(self.builder.stash.len() / self.frame_mbufs)
    }

    #[inline]
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let header = frame.header.len();
        let bytes: usize = frame.payload.iter().map(|slice| slice.len()).sum();
        let tso = frame.offload.tso_mss != 0 && self.capabilities.tso_bytes_max != 0;
        let fits = if tso {
            bytes <= self.capabilities.tso_bytes_max as usize
        } else {
            header + bytes <= self.frame_max as usize
        };
        if header > HEADER_MAX || header + bytes == 0 || !fits {
            return Err(TxError::TooLong);
        }
        if self.batch.is_full() {
            self.flush();
            if self.batch.is_full() {
                return Err(TxError::Full);
            }
        }
        let attach = self.builder.chains
            && bytes > self.copy_below
            && frame.payload.len() <= self.capabilities.tx_slices_max
            && frame.payload.iter().all(|slice| self.reachable(slice));
        let (payload, need) = if attach {
            (Payload::Attach, 1 + frame.payload.len())
        } else {
            (Payload::Copy, self.builder.mbufs_for(header + bytes))
        };
        if need > self.frame_mbufs {
            return Err(TxError::TooLong);
        }
        if self.builder.attached + need > self.tx_pool.mbufs() {
            self.collect();
        }
        if !self.stock(need) {
            // What the device has sent may lie in its queue still.
            self.flush();
            if !self.stock(need) || self.batch.is_full() {
                return Err(TxError::Full);
            }
        }
        // SAFETY: the stash has `need` mbufs; slices are handles of this thread, which owns the
        // pool's home.
        let Some(m) = (unsafe { self.builder.build(frame, payload) }) else {
            return Err(TxError::TooLong);
        };
        if matches!(payload, Payload::Copy) {
            self.stats.tx_copied_bytes += bytes as u64;
        }
        // SAFETY: just built, ours.
        self.offloaded |= unsafe { (*m).ol_flags } != 0;
        self.taken.0 += 1;
        self.taken.1 += (header + bytes) as u64;
        self.batch.push(m);
        if self.batch.len() >= FLUSH_AT {
            self.flush();
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.send_batch();
        }
        self.collect();
    }

    fn is_up(&self) -> bool {
        let (up, asked) = self.link.get();
        if !asked.is_multiple_of(LINK_CALLS) {
            self.link.set((up, asked.wrapping_add(1)));
            return up;
        }
        // SAFETY: the port is open as long as `shared` is.
        let up = unsafe { dpdk_sys::shim_port_link_up(self.port) } == 1;
        self.link.set((up, 1));
        up
    }

    fn rx_buffers(&self) -> Option<(usize, usize)> {
        let total = self.rx_pool.mbufs();
        // Those in the caches of other lcores (a ring's other end) are looked for when it matters.
        let here = self.rx_pool.free_here();
        let free = if here > total / 2 { here } else { self.rx_pool.free() };
        Some((free, total))
    }

    fn rx_event(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the driver's, open until the device is closed, which `shared` puts off.
        self.rx_event.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn arm_rx(&mut self) {
        if self.rx_event.is_none() || !self.rearm {
            return;
        }
        // SAFETY: the port is open and the queue is this thread's.
        match unsafe { dpdk_sys::rte_eth_dev_rx_intr_enable(self.port, self.queue) } {
            0 => {}
            code if code == -libc::ENOTSUP => self.rearm = false,
            // What cannot be asked for a signal is not waited for.
            _ => self.rx_event = None,
        }
    }

    fn disarm_rx(&mut self) {
        let (Some(event), true) = (self.rx_event, self.rearm) else { return };
        let mut count = [0_u8; 8];
        let mut ready = libc::pollfd { fd: event, events: libc::POLLIN, revents: 0 };
        // SAFETY: as above; the descriptor is an eventfd of the driver, of eight bytes. Some drivers
        // would block in reading it when nothing was signalled.
        unsafe {
            dpdk_sys::rte_eth_dev_rx_intr_disable(self.port, self.queue);
            if libc::poll(&mut ready, 1, 0) > 0 {
                libc::read(event, count.as_mut_ptr().cast(), count.len());
            }
        }
    }

    /// Drops that the device counts for the port as a whole are in the numbers of queue 0.
    fn stats(&self) -> LinkStats {
        let mut stats = self.stats;
        let waiting: u64 = self
            .batch
            .iter()
            // SAFETY: frames of the batch are ours.
            .map(|&m| u64::from(unsafe { (*m).pkt_len }))
            .sum();
        stats.tx_frames = self.taken.0 - self.batch.len() as u64;
        stats.tx_bytes = self.taken.1 - waiting;
        if self.queue == 0 {
            // SAFETY: plain numbers, for which zero is valid; the port is open.
            unsafe {
                let mut device: dpdk_sys::shim_port_stats = std::mem::zeroed();
                if dpdk_sys::shim_port_stats(self.port, &mut device) == 0 {
                    stats.rx_missed += device.rx_missed + device.rx_no_mbuf;
                    stats.rx_errors += device.rx_errors;
                    if !self.shared.quirks.errors_are_retries {
                        stats.tx_errors += device.tx_errors;
                    }
                }
            }
        }
        stats
    }
}

impl Drop for PortQueue {
    fn drop(&mut self) {
        self.flush();
        while let Some(m) = self.batch.pop() {
            self.drop_taken(m);
        }
        let stash = &mut self.builder.stash;
        // SAFETY: untouched mbufs of this pool; caches of this thread's lcore; pools are never
        // freed. Drivers without `tx_done_cleanup` say so.
        unsafe {
            dpdk_sys::shim_mbuf_put_bulk(
                self.tx_pool.raw(),
                stash.as_mut_ptr(),
                stash.len() as u32,
            );
            stash.clear();
            dpdk_sys::rte_eth_tx_done_cleanup(self.port, self.queue, 0);
            for pool in [self.rx_raw, self.tx_pool.raw(), self.peer_pool] {
                if !pool.is_null() {
                    dpdk_sys::shim_pool_flush_cache(pool);
                }
            }
        }
        self.collect();
        // The device may read registered memory until it is closed, which another queue decides.
        self.arenas.drain(..).for_each(std::mem::forget);
    }
}

impl std::fmt::Debug for PortQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortQueue")
            .field("driver", &self.capabilities.driver)
            .field("port", &self.port)
            .field("queue", &self.queue)
            .finish()
    }
}

/// What the device's flags say, if it was asked to look.
#[inline]
fn checksum(flags: u64, asked: bool) -> RxChecksum {
    if !asked {
        RxChecksum::Unknown
    } else if flags & (mbuf::RX_IP_CKSUM_BAD | mbuf::RX_L4_CKSUM_BAD) == mbuf::RX_IP_CKSUM_BAD
        || flags & (mbuf::RX_L4_CKSUM_BAD | mbuf::RX_L4_CKSUM_GOOD) == mbuf::RX_L4_CKSUM_BAD
    {
        RxChecksum::Bad
    } else if flags & mbuf::RX_IP_CKSUM_GOOD != 0 && flags & mbuf::RX_L4_CKSUM_GOOD != 0 {
        RxChecksum::Good
    } else {
        RxChecksum::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_flags_are_read_with_care() {
        let good = mbuf::RX_IP_CKSUM_GOOD | mbuf::RX_L4_CKSUM_GOOD;
        assert_eq!(checksum(good, true), RxChecksum::Good);
        assert_eq!(checksum(good, false), RxChecksum::Unknown);
        assert_eq!(checksum(mbuf::RX_L4_CKSUM_GOOD, true), RxChecksum::Unknown);
        assert_eq!(checksum(mbuf::RX_IP_CKSUM_BAD, true), RxChecksum::Bad);
        assert_eq!(checksum(mbuf::RX_IP_CKSUM_GOOD | mbuf::RX_L4_CKSUM_BAD, true), RxChecksum::Bad);
        // Both bits: not in the packet, yet verified (a virtual device).
        let none = mbuf::RX_L4_CKSUM_GOOD | mbuf::RX_L4_CKSUM_BAD;
        assert_eq!(checksum(none | mbuf::RX_IP_CKSUM_GOOD, true), RxChecksum::Good);
    }
}
