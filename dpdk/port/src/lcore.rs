//! Threads that DPDK knows.
//!
//! A mempool keeps a cache of free mbufs for each lcore; a thread without an lcore number goes to
//! the pool's shared ring each time, which costs an atomic operation or two an mbuf.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    /// Guards on this thread, and whether the first of them registered it.
    static HELD: Cell<(u32, bool)> = const { Cell::new((0, false)) };
}

/// No lcore number is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "DPDK has no lcore number left for one more thread ({} at most): use fewer threads",
    dpdk_sys::RTE_MAX_LCORE
)]
pub struct TooManyThreads;

/// While it lives its thread has an lcore number. Guards may be nested; the last one that goes
/// gives the number back, unless the thread had it from EAL.
#[derive(Debug)]
pub struct LcoreGuard {
    _not_send: PhantomData<*mut ()>,
}

impl LcoreGuard {
    pub(crate) fn new() -> Result<Self, TooManyThreads> {
        let (count, mut registered) = HELD.get();
        // SAFETY: reads a thread-local of DPDK.
        if count == 0 && unsafe { dpdk_sys::shim_lcore_id() } == dpdk_sys::LCORE_ID_ANY {
            // SAFETY: EAL is up (only `Eal` gives guards) and the thread has no number yet.
            if unsafe { dpdk_sys::rte_thread_register() } != 0 {
                return Err(TooManyThreads);
            }
            registered = true;
        }
        HELD.set((count + 1, registered));
        Ok(Self { _not_send: PhantomData })
    }
}

impl Drop for LcoreGuard {
    fn drop(&mut self) {
        let (count, registered) = HELD.get();
        if count == 1 && registered {
            // SAFETY: this thread was registered by the first of its guards, and none is left.
            unsafe { dpdk_sys::rte_thread_unregister() };
            HELD.set((0, false));
        } else {
            HELD.set((count - 1, registered));
        }
    }
}
