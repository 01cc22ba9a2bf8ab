//! The controller's registers (NVMe Base Specification 2.0, 3.1.3).

use std::time::Duration;

/// Controller capabilities, 64 bits.
pub(crate) const CAP: usize = 0x00;
/// Version.
pub(crate) const VS: usize = 0x08;
/// Controller configuration.
pub(crate) const CC: usize = 0x14;
/// Controller status.
pub(crate) const CSTS: usize = 0x1c;
/// Admin queue attributes.
pub(crate) const AQA: usize = 0x24;
/// Admin submission queue, 64 bits.
pub(crate) const ASQ: usize = 0x28;
/// Admin completion queue, 64 bits.
pub(crate) const ACQ: usize = 0x30;
/// The first doorbell.
pub(crate) const DOORBELLS: usize = 0x1000;

/// `CC.EN`.
pub(crate) const CC_ENABLE: u32 = 1;
/// `CC.SHN` = 01b: normal shutdown.
pub(crate) const CC_SHUTDOWN: u32 = 1 << 14;
/// What the driver runs with: entries of 64 and 16 bytes, 4 KiB pages, round robin, NVM commands.
pub(crate) const CC_SETTINGS: u32 = 6 << 16 | 4 << 20;

/// `CSTS.RDY`.
pub(crate) const CSTS_READY: u32 = 1;
/// `CSTS.CFS`: the controller has failed for good.
pub(crate) const CSTS_FATAL: u32 = 1 << 1;
/// What a register reads as when there is no device behind it.
pub(crate) const ALL_ONES: u32 = u32::MAX;

/// Whether `CSTS.SHST` says that shutdown is complete.
pub(crate) fn shutdown_complete(csts: u32) -> bool {
    csts >> 2 & 3 == 2
}

/// The capabilities register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cap(pub(crate) u64);

impl Cap {
    /// The most entries that an I/O queue may have.
    pub(crate) fn queue_entries_max(self) -> usize {
        (self.0 & 0xffff) as usize + 1
    }

    /// The longest that `CSTS.RDY` takes to follow `CC.EN`: `CAP.TO` in units of 500 ms. Zero is
    /// taken for the smallest unit.
    pub(crate) fn ready_timeout(self) -> Duration {
        Duration::from_millis((self.0 >> 24 & 0xff).max(1) * 500)
    }

    /// Bytes between doorbells.
    pub(crate) fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether the NVM command set is there.
    pub(crate) fn has_nvm(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// The smallest page, in bytes.
    pub(crate) fn page_bytes_min(self) -> u64 {
        1 << (12 + (self.0 >> 48 & 0xf))
    }

    /// Where the tail doorbell of submission queue `queue` is.
    pub(crate) fn sq_doorbell(self, queue: u16) -> usize {
        DOORBELLS + 2 * usize::from(queue) * self.doorbell_stride()
    }

    /// Where the head doorbell of completion queue `queue` is.
    pub(crate) fn cq_doorbell(self, queue: u16) -> usize {
        DOORBELLS + (2 * usize::from(queue) + 1) * self.doorbell_stride()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_decoded() {
        // As QEMU's controller has them: 2048 entries, contiguous queues, 7.5 s, NVM commands.
        let cap = Cap(0x7ff | 1 << 16 | 0xf << 24 | 1 << 37 | 4 << 52);
        assert_eq!(cap.queue_entries_max(), 2048);
        assert_eq!(cap.ready_timeout(), Duration::from_millis(7500));
        assert_eq!((cap.sq_doorbell(0), cap.cq_doorbell(0)), (0x1000, 0x1004));
        assert_eq!((cap.sq_doorbell(1), cap.cq_doorbell(1)), (0x1008, 0x100c));
        assert!(cap.has_nvm() && cap.page_bytes_min() == 4096);
        let wide = Cap(2 << 32 | 1 << 48);
        assert_eq!((wide.doorbell_stride(), wide.cq_doorbell(1)), (16, 0x1030));
        assert!(!wide.has_nvm() && wide.page_bytes_min() == 8192);
        assert_eq!(wide.ready_timeout(), Duration::from_millis(500), "zero is not believed");
    }

    #[test]
    fn shutdown_is_complete_only_when_it_is() {
        assert!(!shutdown_complete(1) && !shutdown_complete(1 | 1 << 2));
        assert!(shutdown_complete(1 | 2 << 2));
        assert!(!shutdown_complete(ALL_ONES), "a device that is gone does not shut down");
    }
}
