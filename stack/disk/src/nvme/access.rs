//! What a driver touches: registers and memory, whoever lends them.
//!
//! The same driver runs over VFIO, over sysfs, over a test's socket to an emulator, and over a
//! simulator in this process; each is a [`Device`].

use std::any::Any;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use millstream_timer::{Clock, Instant, TscClock, VirtualClock};

/// The page size that the driver chooses in `CC.MPS`: 4 KiB.
pub const PAGE_BYTES: usize = 4096;

/// Registers of a controller: offsets into its BAR 0, multiples of the access size.
pub trait Bar {
    /// Reads 32 bits; all ones if the device is gone.
    fn read32(&mut self, at: usize) -> u32;

    /// Writes 32 bits.
    fn write32(&mut self, at: usize, value: u32);

    /// Bytes of the BAR.
    fn bar_bytes(&self) -> usize;

    /// Reads 64 bits, as two accesses where there is no better way (NVMe 2.0, 3.1.1 allows that).
    fn read64(&mut self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    /// Writes 64 bits, the lower half first.
    fn write64(&mut self, at: usize, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }
}

/// Memory that a device reaches.
pub trait Dma {
    /// Zeroed memory of the driver's own for queues and lists: starts on a page, and each 64 KiB of
    /// it that start at a multiple of 64 KiB are contiguous for the device.
    ///
    /// # Errors
    /// What the system said.
    fn queue_memory(&mut self, bytes: usize) -> io::Result<DmaMemory>;

    /// Makes memory of others reachable, as long as the device exists.
    ///
    /// # Safety
    /// The memory stays mapped until the device is dropped.
    ///
    /// # Errors
    /// What the system said.
    unsafe fn map(&mut self, start: NonNull<u8>, bytes: usize) -> io::Result<IovaTable>;
}

/// A controller within reach.
pub trait Device: Bar + Dma {
    /// Which one, for people: its PCI address.
    fn name(&self) -> &str;

    /// Lets the device start transfers of its own, or forbids it (the bus master bit).
    ///
    /// # Errors
    /// What the system said.
    fn set_bus_master(&mut self, on: bool) -> io::Result<()>;

    /// Resets the function by other means than its own registers. `true` only if that proves that
    /// the device writes no memory any more.
    fn reset_function(&mut self) -> bool {
        false
    }

    /// Called once a poll: a device that lives in this process does its work now.
    #[inline]
    fn turn(&mut self, _now: Instant) {}
}

/// A clock that a driver may wait by while it opens or closes a device.
pub trait Pause: Clock {
    /// Lets `nanos` nanoseconds pass.
    fn pause_nanos(&self, nanos: u64);
}

impl Pause for TscClock {
    fn pause_nanos(&self, nanos: u64) {
        std::thread::sleep(std::time::Duration::from_nanos(nanos));
    }
}

impl Pause for VirtualClock {
    fn pause_nanos(&self, nanos: u64) {
        self.advance_nanos(nanos);
    }
}

/// Where a device finds a range of our memory.
#[derive(Clone, Debug)]
pub struct IovaTable {
    start: usize,
    bytes: usize,
    /// Each entry is for `1 << shift` bytes.
    shift: u32,
    iovas: Rc<[u64]>,
}

impl IovaTable {
    /// Memory that is contiguous for the device.
    pub fn linear(start: usize, bytes: usize, iova: u64) -> Self {
        Self { start, bytes, shift: usize::BITS - 1, iovas: Rc::new([iova]) }
    }

    /// Memory in pages of `1 << shift` bytes with an address each. `None` if there are too few, or
    /// if `start` is not on such a page.
    pub fn paged(start: usize, bytes: usize, shift: u32, iovas: Vec<u64>) -> Option<Self> {
        let enough = iovas.len() >= bytes.div_ceil(1 << shift);
        let whole = start.is_multiple_of(1 << shift);
        (enough && whole).then(|| Self { start, bytes, shift, iovas: iovas.into() })
    }

    /// The address at which the device finds our byte at `address`; `None` if it cannot reach it.
    #[inline]
    pub fn iova(&self, address: usize) -> Option<u64> {
        let offset = address.wrapping_sub(self.start);
        if offset >= self.bytes {
            return None;
        }
        let page = self.iovas.get(offset >> self.shift)?;
        Some(page + (offset & ((1 << self.shift) - 1)) as u64)
    }
}

/// Memory of a driver's own: rings, lists and answers. The device may write it at any time, so it is
/// read and written through volatile accesses alone and never lent as a slice.
#[derive(Debug)]
pub struct DmaMemory {
    start: NonNull<u8>,
    bytes: usize,
    iovas: IovaTable,
    keeper: Option<Rc<dyn Any>>,
    /// Mapped by [`Self::anonymous`].
    mapped: bool,
}

impl DmaMemory {
    /// A fresh mapping of pages that are locked in memory, of 2 MiB each if `huge`. The device does
    /// not know it yet: see [`Self::with_iovas`].
    ///
    /// # Errors
    /// What the system said.
    pub fn anonymous(bytes: usize, huge: bool) -> io::Result<Self> {
        let page = if huge { 2 << 20 } else { PAGE_BYTES };
        let bytes = bytes.max(1).next_multiple_of(page);
        let huge = if huge { libc::MAP_HUGETLB | libc::MAP_HUGE_2MB } else { 0 };
        // SAFETY: a fresh anonymous mapping touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | huge,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let iovas = IovaTable::linear(start.as_ptr() as usize, 0, 0);
        Ok(Self { start, bytes, iovas, keeper: None, mapped: true })
    }

    /// Memory that somebody else keeps.
    ///
    /// # Safety
    /// The `bytes` bytes from `start`, which is on a page, are zero, are nobody else's, and stay
    /// mapped as long as `keeper` lives.
    pub unsafe fn borrowed(
        start: NonNull<u8>,
        bytes: usize,
        iovas: IovaTable,
        keeper: Rc<dyn Any>,
    ) -> Self {
        Self { start, bytes, iovas, keeper: Some(keeper), mapped: false }
    }

    /// The same memory, where the device finds it by `iovas`.
    #[must_use]
    pub fn with_iovas(mut self, iovas: IovaTable) -> Self {
        self.iovas = iovas;
        self
    }

    /// Its first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the device finds the byte at `offset`.
    pub fn iova(&self, offset: usize) -> Option<u64> {
        self.iovas.iova(self.start.as_ptr() as usize + offset)
    }

    /// Where the device finds `bytes` bytes from `offset` on, if they are contiguous for it.
    pub(crate) fn contiguous(&self, offset: usize, bytes: usize) -> Option<u64> {
        let first = self.iova(offset)?;
        let whole = (0..bytes)
            .step_by(PAGE_BYTES)
            .all(|at| self.iova(offset + at) == Some(first + at as u64));
        (whole && offset + bytes <= self.bytes).then_some(first)
    }

    /// The address of the byte at `offset`.
    ///
    /// # Panics
    /// If fewer than `bytes` bytes follow.
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: inside the mapping, as was just checked.
        unsafe { self.start.add(offset) }
    }

    /// Writes 64 bits, little-endian, at a multiple of eight bytes.
    #[inline]
    pub(crate) fn write64(&self, offset: usize, value: u64) {
        let at = self.at(offset, 8).cast::<u64>();
        assert!(at.is_aligned());
        // SAFETY: checked to be inside and aligned; no reference to this memory exists.
        unsafe { at.write_volatile(value.to_le()) }
    }

    /// Copies bytes out.
    pub(crate) fn copy_out(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        for (at, byte) in out.iter_mut().enumerate() {
            // SAFETY: `at` checked the whole range.
            *byte = unsafe { from.add(at).read_volatile() };
        }
    }

    /// Makes bytes zero.
    pub(crate) fn clear(&self, offset: usize, bytes: usize) {
        let from = self.at(offset, bytes);
        // SAFETY: `at` checked the whole range; the device is off or was not told of it.
        unsafe { from.write_bytes(0, bytes) }
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: mapped by `anonymous` with this length. Whoever drops it has seen to it that
            // the device does not write any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
        let _ = self.keeper.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_translate_inside_and_refuse_outside() {
        let linear = IovaTable::linear(0x1000, 0x3000, 0x10_0000);
        assert_eq!(linear.iova(0x1000), Some(0x10_0000));
        assert_eq!(linear.iova(0x3fff), Some(0x10_2fff));
        assert_eq!((linear.iova(0xfff), linear.iova(0x4000)), (None, None));
        let paged = IovaTable::paged(0x2000, 0x1800, 12, vec![0x7000, 0x3000]).unwrap();
        assert_eq!(paged.iova(0x2004), Some(0x7004));
        assert_eq!(paged.iova(0x3004), Some(0x3004));
        assert_eq!(paged.iova(0x3800), None, "beyond its bytes");
        assert!(IovaTable::paged(0x2000, 0x2001, 12, vec![0, 0]).is_none(), "too few");
        assert!(IovaTable::paged(0x2001, 0x1000, 12, vec![0, 0]).is_none(), "not on a page");
    }

    #[test]
    fn memory_is_contiguous_only_if_all_of_it_is() {
        let memory = DmaMemory::anonymous(2 * PAGE_BYTES, false).unwrap();
        let start = memory.start().as_ptr() as usize;
        assert_eq!(memory.iova(0), None, "no device knows it");
        let apart = IovaTable::paged(start, 2 * PAGE_BYTES, 12, vec![0x9000, 0x5000]).unwrap();
        let memory = memory.with_iovas(apart);
        assert_eq!(memory.contiguous(0, PAGE_BYTES), Some(0x9000));
        assert_eq!(memory.contiguous(0, 2 * PAGE_BYTES), None);
        let memory = memory.with_iovas(IovaTable::linear(start, 2 * PAGE_BYTES, 0x9000));
        assert_eq!(memory.contiguous(0, 2 * PAGE_BYTES), Some(0x9000));
        memory.write64(8, 0x0102);
        let mut out = [0; 10];
        memory.copy_out(8, &mut out);
        assert_eq!(out, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
