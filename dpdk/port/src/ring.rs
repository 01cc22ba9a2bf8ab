//! Rings that carry mbufs between ports of one process.

use std::ffi::CString;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk_sys::rte_ring;

/// A ring; what is left in it is freed when it goes.
#[derive(Debug)]
pub(crate) struct Ring(*mut rte_ring);

// SAFETY: DPDK's rings may be used from several threads (one a side, by how they are made).
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// With room for `frames`, for one sender and one receiver; or DPDK's errno.
    pub fn new(frames: u16) -> Result<Self, i32> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("millstream_ring_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).map_err(|_| libc::EINVAL)?;
        let flags = dpdk_sys::RING_F_SP_ENQ | dpdk_sys::RING_F_SC_DEQ | dpdk_sys::RING_F_EXACT_SZ;
        // SAFETY: EAL is up; the name outlives the call.
        let ring =
            unsafe { dpdk_sys::rte_ring_create(name.as_ptr(), u32::from(frames.max(1)), 0, flags) };
        if ring.is_null() {
            // SAFETY: reads DPDK's errno.
            return Err(unsafe { dpdk_sys::shim_errno() });
        }
        Ok(Self(ring))
    }

    pub fn raw(&self) -> *mut rte_ring {
        self.0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut mbufs = [std::ptr::null_mut(); 32];
        // SAFETY: the ports on both sides are closed (they own the ring together), so this is the
        // only user; what is in it are mbufs that nobody else has.
        unsafe {
            loop {
                let count = dpdk_sys::shim_ring_dequeue(self.0, mbufs.as_mut_ptr(), 32);
                if count == 0 {
                    break;
                }
                for &mbuf in &mbufs[..count as usize] {
                    dpdk_sys::shim_mbuf_free(mbuf.cast());
                }
            }
            dpdk_sys::rte_ring_free(self.0);
        }
    }
}
