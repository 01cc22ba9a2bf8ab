//! Pools of mbufs, each with room for a buffer's header and a transmit record.
//!
//! ```text
//! mbuf 128 B | BufHeader 64 B | TxRecord 40 B, padding | headroom 128 B | data
//! ```
//! Pools are never given back to DPDK: when a port closes its peers or the application may still
//! hold buffers of them. They wait here, and the next queue that wants a pool of the same shape gets
//! one that is full again.

use std::ffi::{CString, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use dpdk_sys::{Mbuf, SharedInfo, mbuf, rte_mempool};
use millstream_buf::BufHeader;

use crate::home::{Home, TxRecord, payload_done};

const HEADER_AT: usize = size_of::<Mbuf>();
const RECORD_AT: usize = HEADER_AT + size_of::<BufHeader>();
/// Bytes between mbuf and buffer.
pub(crate) const PRIVATE_BYTES: u16 = 128;

const _: () = assert!(size_of::<BufHeader>() + size_of::<TxRecord>() <= PRIVATE_BYTES as usize);

/// What a pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub mbufs: u32,
    /// Data bytes of an mbuf, the headroom not counted.
    pub room: u16,
    pub socket: i32,
}

impl Shape {
    /// Memory that it takes, about.
    pub fn bytes(&self) -> u64 {
        let each = 64 + HEADER_AT as u64 + u64::from(PRIVATE_BYTES + mbuf::HEADROOM + self.room);
        u64::from(self.mbufs) * each.next_multiple_of(64)
    }
}

/// A mempool that is in use by one queue.
#[derive(Debug)]
pub(crate) struct Pool {
    inner: Inner,
}

#[derive(Clone, Copy, Debug)]
struct Inner {
    pool: *mut rte_mempool,
    shape: Shape,
    home: &'static Home,
}

// SAFETY: mempools may be used from any thread; `Home` is `Sync`.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing is changed through `&Inner` but by DPDK's thread-safe calls.
unsafe impl Sync for Inner {}

static RETIRED: Mutex<Vec<Inner>> = Mutex::new(Vec::new());

impl Pool {
    /// A full pool of `shape`, or DPDK's errno.
    pub fn obtain(shape: Shape) -> Result<Self, i32> {
        let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = retired.iter().position(|inner| inner.shape == shape && inner.is_whole());
        let inner = match fit {
            Some(at) => retired.swap_remove(at),
            None => Inner::create(shape)?,
        };
        Ok(Self { inner })
    }

    pub fn raw(&self) -> *mut rte_mempool {
        self.inner.pool
    }

    pub fn home(&self) -> &'static Home {
        self.inner.home
    }

    pub fn mbufs(&self) -> usize {
        self.inner.shape.mbufs as usize
    }

    /// Mbufs that are in the pool for this thread to take, those in other lcores' caches left out.
    pub fn free_here(&self) -> usize {
        // SAFETY: pools are never freed.
        unsafe { dpdk_sys::shim_pool_free_here(self.inner.pool) as usize }
    }

    /// Mbufs that are in the pool. Slow: it asks the caches of all lcores.
    pub fn free(&self) -> usize {
        self.inner.free()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        RETIRED.lock().unwrap_or_else(PoisonError::into_inner).push(self.inner);
    }
}

impl Inner {
    fn create(shape: Shape) -> Result<Self, i32> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("millstream_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).map_err(|_| libc::EINVAL)?;
        let cache = (shape.mbufs / 4).min(256);
        // SAFETY: EAL is up (only a port makes pools); the name outlives the call.
        let pool = unsafe {
            dpdk_sys::rte_pktmbuf_pool_create(
                name.as_ptr(),
                shape.mbufs,
                cache,
                PRIVATE_BYTES,
                shape.room + mbuf::HEADROOM,
                shape.socket,
            )
        };
        if pool.is_null() {
            // SAFETY: reads DPDK's errno.
            return Err(unsafe { dpdk_sys::shim_errno() });
        }
        // A pool lives as long as the process, and so does its home.
        let home: &'static Home = Box::leak(Box::new(Home::new(shape.mbufs as usize)));
        let home_ptr = std::ptr::from_ref(home).cast_mut().cast::<c_void>();
        // SAFETY: nobody else has the pool yet; `prepare` stays inside each object.
        unsafe { dpdk_sys::rte_mempool_obj_iter(pool, Some(prepare), home_ptr) };
        Ok(Self { pool, shape, home })
    }

    fn free(&self) -> usize {
        // SAFETY: pools are never freed.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.pool) as usize }
    }

    /// Nothing of it is out, and nothing waits for a thread that is gone.
    fn is_whole(&self) -> bool {
        self.free() == self.shape.mbufs as usize && self.home.is_empty()
    }
}

/// Writes the header and the record of one mbuf.
unsafe extern "C" fn prepare(
    _pool: *mut rte_mempool,
    home: *mut c_void,
    object: *mut c_void,
    _index: u32,
) {
    let m = object.cast::<Mbuf>();
    // SAFETY: `object` is an mbuf that `rte_pktmbuf_pool_create` initialised, aligned to 64 bytes
    // (mempools align objects to cache lines), with `PRIVATE_BYTES` behind it, in which both
    // structures fit (asserted above). Nobody uses it yet.
    unsafe {
        let Some(data) = NonNull::new((*m).buf_addr) else { return };
        let header = header_of(m);
        BufHeader::init_foreign(header, data, u32::from((*m).buf_len), give_back);
        let record = record_of(m);
        record.write(TxRecord {
            info: SharedInfo { free: Some(payload_done), opaque: record.cast(), refcnt: 0 },
            header: std::ptr::null_mut(),
            home: home.cast(),
        });
    }
}

/// The header in the private area of an mbuf of ours.
///
/// # Safety
/// `m` belongs to a [`Pool`].
#[inline]
pub(crate) unsafe fn header_of(m: *mut Mbuf) -> NonNull<BufHeader> {
    // SAFETY: inside the mempool object by the caller's promise, and never null.
    unsafe { NonNull::new_unchecked(m.byte_add(HEADER_AT).cast()) }
}

/// The transmit record in the private area of an mbuf of ours.
///
/// # Safety
/// `m` belongs to a [`Pool`].
#[inline]
pub(crate) unsafe fn record_of(m: *mut Mbuf) -> *mut TxRecord {
    // SAFETY: inside the mempool object by the caller's promise.
    unsafe { m.byte_add(RECORD_AT).cast() }
}

/// The last handle on a received frame is gone.
///
/// # Safety
/// `header` was written by [`prepare`] and was handed out by a queue's `rx_burst`.
unsafe fn give_back(header: NonNull<BufHeader>) {
    // SAFETY: the mbuf lies in front of its header; `rx_burst` hands out only mbufs that are
    // direct, unshared and unchained, which is what `shim_mbuf_put` wants.
    unsafe { dpdk_sys::shim_mbuf_put(header.as_ptr().byte_sub(HEADER_AT).cast()) }
}
