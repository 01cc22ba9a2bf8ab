//! Commands and their completions as they lie in the queues (NVMe Base Specification 2.0, 3.3.3).

use super::status::Status;

/// Bytes of a submission queue entry.
pub(crate) const COMMAND_BYTES: usize = 64;
/// Bytes of a completion queue entry.
pub(crate) const ENTRY_BYTES: usize = 16;

/// Admin: delete an I/O submission queue.
pub(crate) const DELETE_SQ: u8 = 0x00;
/// Admin: create an I/O submission queue.
pub(crate) const CREATE_SQ: u8 = 0x01;
/// Admin: get a log page.
pub(crate) const GET_LOG: u8 = 0x02;
/// Admin: delete an I/O completion queue.
pub(crate) const DELETE_CQ: u8 = 0x04;
/// Admin: create an I/O completion queue.
pub(crate) const CREATE_CQ: u8 = 0x05;
/// Admin: identify.
pub(crate) const IDENTIFY: u8 = 0x06;
/// Admin: abort a command.
pub(crate) const ABORT: u8 = 0x08;
/// Admin: set a feature.
pub(crate) const SET_FEATURES: u8 = 0x09;
/// Admin: asynchronous event request.
pub(crate) const ASYNC_EVENT: u8 = 0x0c;
/// I/O: read. The data path knows no other command.
pub(crate) const READ: u8 = 0x02;

/// Identify: a namespace.
pub(crate) const CNS_NAMESPACE: u32 = 0;
/// Identify: the controller.
pub(crate) const CNS_CONTROLLER: u32 = 1;
/// Identify: the namespaces that are active.
pub(crate) const CNS_ACTIVE: u32 = 2;
/// Set features: number of queues.
pub(crate) const FEATURE_QUEUES: u32 = 7;
/// Set features: which asynchronous events are told.
pub(crate) const FEATURE_ASYNC: u32 = 0x0b;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Command(pub(crate) [u64; 8]);

impl Command {
    #[inline]
    fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        let mut words = [0; 8];
        words[0] = u64::from(opcode) | u64::from(cid) << 16 | u64::from(nsid) << 32;
        Self(words)
    }

    #[inline]
    fn with(mut self, word: usize, low: u32, high: u32) -> Self {
        self.0[word] = u64::from(low) | u64::from(high) << 32;
        self
    }

    #[inline]
    fn pages(mut self, prp1: u64, prp2: u64) -> Self {
        self.0[3] = prp1;
        self.0[4] = prp2;
        self
    }

    /// Reads `blocks` logical blocks (1 to 65,536) from `lba` on.
    #[inline]
    pub(crate) fn read(cid: u16, nsid: u32, lba: u64, blocks: u32, prp: (u64, u64)) -> Self {
        let mut command = Self::new(READ, cid, nsid).pages(prp.0, prp.1);
        command.0[5] = lba;
        command.0[6] = u64::from(blocks.wrapping_sub(1) & 0xffff);
        command
    }

    pub(crate) fn identify(cid: u16, cns: u32, nsid: u32, page: u64) -> Self {
        Self::new(IDENTIFY, cid, nsid).pages(page, 0).with(5, cns, 0)
    }

    pub(crate) fn set_feature(cid: u16, feature: u32, value: u32) -> Self {
        Self::new(SET_FEATURES, cid, 0).with(5, feature, value)
    }

    /// Physically contiguous, without interrupts.
    pub(crate) fn create_cq(cid: u16, queue: u16, entries: u16, ring: u64) -> Self {
        let size = u32::from(queue) | u32::from(entries - 1) << 16;
        Self::new(CREATE_CQ, cid, 0).pages(ring, 0).with(5, size, 1)
    }

    /// Physically contiguous, completing to the completion queue of the same number.
    pub(crate) fn create_sq(cid: u16, queue: u16, entries: u16, ring: u64) -> Self {
        let size = u32::from(queue) | u32::from(entries - 1) << 16;
        Self::new(CREATE_SQ, cid, 0).pages(ring, 0).with(5, size, 1 | u32::from(queue) << 16)
    }

    pub(crate) fn delete(opcode: u8, cid: u16, queue: u16) -> Self {
        Self::new(opcode, cid, 0).with(5, queue.into(), 0)
    }

    /// Asks for the abort of command `victim` of submission queue `queue`.
    pub(crate) fn abort(cid: u16, queue: u16, victim: u16) -> Self {
        Self::new(ABORT, cid, 0).with(5, u32::from(queue) | u32::from(victim) << 16, 0)
    }

    pub(crate) fn async_event(cid: u16) -> Self {
        Self::new(ASYNC_EVENT, cid, 0)
    }

    /// A log page of `bytes` bytes (a multiple of four, at most a page), of all namespaces.
    pub(crate) fn get_log(cid: u16, log: u8, bytes: u32, page: u64) -> Self {
        let dwords = bytes / 4 - 1;
        Self::new(GET_LOG, cid, u32::MAX).pages(page, 0).with(5, u32::from(log) | dwords << 16, 0)
    }
}

/// A completion queue entry, with its phase bit taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What the command answers.
    pub(crate) result: u32,
    /// How far the device has taken commands.
    pub(crate) sq_head: u16,
    pub(crate) sq: u16,
    pub(crate) cid: u16,
    pub(crate) status: Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_lie_as_the_specification_has_them() {
        let read = Command::read(0x1234, 1, 0x1_0000_0002, 8, (0x1000, 0x2000));
        assert_eq!(read.0[0], 0x0000_0001_1234_0002);
        assert_eq!(read.0[3..7], [0x1000, 0x2000, 0x1_0000_0002, 7]);
        let create = Command::create_sq(5, 1, 33, 0x3000);
        assert_eq!((create.0[0], create.0[3]), (0x0005_0001, 0x3000));
        assert_eq!(create.0[5], 0x0001_0001_0020_0001, "size 32, contiguous, to queue 1");
        assert_eq!(Command::create_cq(5, 1, 33, 0x3000).0[5], 0x0000_0001_0020_0001);
        assert_eq!(Command::abort(5, 1, 0x77).0[5], 0x0077_0001);
        assert_eq!(Command::get_log(5, 2, 512, 0x1000).0[5], 0x007f_0002);
        assert_eq!(std::mem::size_of::<Command>(), COMMAND_BYTES);
    }
}
