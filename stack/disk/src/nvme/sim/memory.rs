//! The memory that a simulated device reaches, behind addresses that are not ours.

use std::io;
use std::ptr::NonNull;

use crate::nvme::access::IovaTable;

/// Bits of the offset in a region: each region has an address space of its own.
const REGION_SHIFT: u32 = 40;

/// What an IOMMU would know.
#[derive(Debug, Default)]
pub(super) struct Memory {
    regions: Vec<(NonNull<u8>, usize)>,
}

impl Memory {
    /// Lets the device reach `bytes` bytes from `start` on.
    pub(super) fn map(&mut self, start: NonNull<u8>, bytes: usize) -> io::Result<IovaTable> {
        if bytes >> REGION_SHIFT != 0 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.regions.push((start, bytes));
        let iova = (self.regions.len() as u64) << REGION_SHIFT;
        Ok(IovaTable::linear(start.as_ptr() as usize, bytes, iova))
    }

    /// Our address of `bytes` bytes at the device's address `iova`; `None` is an IOMMU fault.
    #[inline]
    pub(super) fn reach(&self, iova: u64, bytes: usize) -> Option<NonNull<u8>> {
        let index = (iova >> REGION_SHIFT).checked_sub(1)?;
        let (start, len) = *self.regions.get(usize::try_from(index).ok()?)?;
        let offset = (iova & ((1 << REGION_SHIFT) - 1)) as usize;
        if offset.checked_add(bytes)? > len {
            return None;
        }
        // SAFETY: the offset lies inside the region, whose mapping outlives the device.
        Some(unsafe { start.add(offset) })
    }

    /// Reads a little-endian word at a multiple of eight bytes.
    #[inline]
    pub(super) fn read64(&self, iova: u64) -> Option<u64> {
        let at = self.reach(iova, 8)?.cast::<u64>();
        // SAFETY: inside a region, as `reach` checked; nobody has a reference to it while the device
        // may touch it (see `NvmeQueue`), and this device runs on the driver's own thread.
        at.is_aligned().then(|| u64::from_le(unsafe { at.read_volatile() }))
    }

    /// Writes a little-endian word at a multiple of four bytes.
    #[inline]
    pub(super) fn write32(&self, iova: u64, value: u32) -> Option<()> {
        let at = self.reach(iova, 4)?.cast::<u32>();
        // SAFETY: as in `read64`.
        at.is_aligned().then(|| unsafe { at.write_volatile(value.to_le()) })
    }

    /// Writes bytes.
    pub(super) fn write(&self, iova: u64, bytes: &[u8]) -> Option<()> {
        let at = self.reach(iova, bytes.len())?;
        // SAFETY: as in `read64`; `bytes` is the device's own and does not overlap.
        unsafe { at.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Some(())
    }
}
