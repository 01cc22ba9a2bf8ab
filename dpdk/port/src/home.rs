//! The way home of payload that the device still holds.
//!
//! Each mbuf that points at payload holds one reference of its own on that buffer, and has its own
//! `SharedInfo` beside itself. DPDK's count in it is therefore always 1, and no thread ever raises
//! a count that another thread is lowering; DPDK's own counter is not made for that
//! (`rte_mbuf_ext_refcnt_update` writes a count of 1 down to 0 without an atomic operation).
//!
//! Whoever frees the mbuf calls [`payload_done`]. On the queue's own thread that gives the reference
//! back at once. On any other (a ring's peer) it is put on a queue, which the owner empties at each
//! flush. That queue cannot overflow: see [`Home::capacity_for`].

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use dpdk_sys::SharedInfo;
use millstream_buf::{BufHeader, release_any_thread};

/// Where references on payload come back to: one a transmit pool.
#[derive(Debug)]
pub(crate) struct Home {
    /// The thread whose references these are.
    thread: AtomicU64,
    /// Headers, one reference each.
    returns: ArrayQueue<usize>,
    /// References that found no room; stays 0.
    lost: AtomicU64,
}

/// In the private area of an mbuf that may point at payload.
#[repr(C)]
pub(crate) struct TxRecord {
    pub info: SharedInfo,
    /// The payload's buffer, while attached.
    pub header: *mut BufHeader,
    pub home: *const Home,
}

/// A number for the calling thread, never reused.
pub(crate) fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

impl Home {
    /// For a pool of `mbufs`.
    pub fn new(mbufs: usize) -> Self {
        Self {
            thread: AtomicU64::new(0),
            returns: ArrayQueue::new(Self::capacity_for(mbufs)),
            lost: AtomicU64::new(0),
        }
    }

    /// At most `mbufs` are attached when the owner empties the queue, and it empties it before it
    /// has attached another `mbufs`: so at most twice as many can come back in between.
    fn capacity_for(mbufs: usize) -> usize {
        mbufs.max(1) * 2
    }

    /// Makes the calling thread the owner. No mbuf of the pool is attached at that time.
    pub fn bind(&self) {
        self.thread.store(thread_number(), Ordering::Relaxed);
    }

    /// Whether nothing waits for the owner.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.returns.is_empty()
    }

    /// Gives back what other threads freed. Only the owner calls this.
    pub fn drain(&self) {
        debug_assert_eq!(self.thread.load(Ordering::Relaxed), thread_number());
        while let Some(header) = self.returns.pop() {
            let Some(header) = NonNull::new(header as *mut BufHeader) else { continue };
            // SAFETY: one reference taken by the queue on this thread when it attached the payload.
            unsafe { release_any_thread(header) };
        }
    }

    /// References that could not be given back.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// DPDK's callback: the mbuf that pointed at the payload is being freed.
pub(crate) unsafe extern "C" fn payload_done(_address: *mut c_void, opaque: *mut c_void) {
    // SAFETY: `opaque` is the record in the private area of the mbuf, which goes back to its pool
    // only after this call; its home lives as long as the pool.
    let (header, home) = unsafe {
        let record = &*opaque.cast::<TxRecord>();
        (record.header, &*record.home)
    };
    if home.thread.load(Ordering::Relaxed) == thread_number() {
        if let Some(header) = NonNull::new(header) {
            // SAFETY: the reference that was taken on this thread for this attachment.
            unsafe { release_any_thread(header) };
        }
    } else if home.returns.push(header as usize).is_err() {
        // Not reached by the argument at `capacity_for`. Were it, the buffer would stay unused
        // rather than be used twice.
        home.lost.fetch_add(1, Ordering::Relaxed);
    }
}
