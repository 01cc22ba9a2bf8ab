//! The commands of the admin queue.

use super::device::{QUEUES, SimDevice, cid};
use crate::nvme::access::PAGE_BYTES;
use crate::nvme::command::{
    ABORT, ASYNC_EVENT, CNS_ACTIVE, CNS_CONTROLLER, CNS_NAMESPACE, CREATE_CQ, CREATE_SQ, Command,
    DELETE_CQ, DELETE_SQ, GET_LOG, IDENTIFY, SET_FEATURES,
};
use crate::nvme::status::Status;

const INVALID_FIELD: Status = Status::new(0, 0x02, true);
const INVALID_NAMESPACE: Status = Status::new(0, 0x0b, true);
const INVALID_QUEUE: Status = Status::new(1, 0x01, true);
const INVALID_DELETION: Status = Status::new(1, 0x0c, true);
const EVENT_LIMIT: Status = Status::new(1, 0x05, true);

impl SimDevice {
    pub(super) fn admin(&mut self, command: &Command) {
        self.stats.admin += 1;
        let [head, _, _, page, _, words, _, _] = command.0;
        let (low, high) = (words as u32, (words >> 32) as u32);
        let number = usize::from(low as u16);
        let entries = (low >> 16) as u16 + 1;
        let (status, result) = match head as u8 {
            IDENTIFY => (self.identify(low & 0xff, (head >> 32) as u32, page), 0),
            SET_FEATURES => (Status::SUCCESS, 0),
            CREATE_CQ => (self.create_cq(number, entries, high, page), 0),
            CREATE_SQ => (self.create_sq(number, entries, high, page), 0),
            DELETE_CQ | DELETE_SQ => (self.delete(head as u8, number), 0),
            GET_LOG => (self.log(low as u8, page), 0),
            ABORT if self.config.faults.ignores_aborts => return,
            ABORT => {
                let done = number == 1 && self.abort_read((low >> 16) as u16);
                (Status::SUCCESS, u32::from(!done))
            }
            // Answered when there is something to tell.
            ASYNC_EVENT if self.event_requests.len() < 4 => {
                return self.event_requests.push_back(cid(command));
            }
            ASYNC_EVENT => (EVENT_LIMIT, 0),
            _ => {
                self.stats.violations += 1;
                (Status::new(0, 0x01, true), 0)
            }
        };
        if !status.is_success() {
            self.stats.violations += u64::from(status != INVALID_NAMESPACE);
        }
        self.answer(command, status, result);
    }

    /// Tells of an event, if the driver has asked for one. `kind` is its type and information as
    /// they lie in the completion, `log` the page that goes with it.
    pub fn tell_event(&mut self, kind: u16, log: u8) -> bool {
        let Some(number) = self.event_requests.pop_front() else { return false };
        let result = u32::from(kind) | u32::from(log) << 16;
        self.answer(&Command([u64::from(number) << 16; 8]), Status::SUCCESS, result);
        true
    }

    fn identify(&mut self, cns: u32, nsid: u32, to: u64) -> Status {
        let mut page = vec![0u8; PAGE_BYTES];
        match cns {
            CNS_CONTROLLER => {
                page[4..24].copy_from_slice(b"00000001            ");
                page[24..64].fill(b' ');
                page[24..45].copy_from_slice(b"millstream simulation");
                page[64..72].copy_from_slice(b"1       ");
                page[77] = self.config.mdts;
                page[258] = 3;
                page[512] = 0x66;
                page[513] = 0x44;
                page[516] = 1;
            }
            CNS_ACTIVE => page[0] = 1,
            CNS_NAMESPACE if nsid == 1 => {
                page[..8].copy_from_slice(&self.config.blocks.to_le_bytes());
                page[8..16].copy_from_slice(&self.config.blocks.to_le_bytes());
                page[130] = self.config.block_bytes.ilog2() as u8;
            }
            CNS_NAMESPACE => return INVALID_NAMESPACE,
            _ => return INVALID_FIELD,
        }
        self.write_page(to, &page)
    }

    fn log(&mut self, log: u8, to: u64) -> Status {
        let mut page = vec![0u8; 512];
        // Health: the temperature is critical.
        page[0] = if log == 2 { 2 } else { 0 };
        self.write_page(to, &page)
    }

    fn write_page(&mut self, to: u64, page: &[u8]) -> Status {
        if self.memory.write(to, page).is_some() {
            return Status::SUCCESS;
        }
        self.stats.faults += 1;
        Status::new(0, 0x04, true)
    }

    fn fits(&self, number: usize, entries: u16) -> bool {
        (1..QUEUES).contains(&number) && entries >= 2 && entries <= self.config.queue_entries
    }

    fn create_cq(&mut self, number: usize, entries: u16, flags: u32, ring: u64) -> Status {
        // Contiguous, and without interrupts, since nobody would take them.
        if !self.fits(number, entries) || self.queues[number].cq_entries != 0 || flags != 1 {
            return INVALID_QUEUE;
        }
        self.queues[number].reset_cq(ring, entries);
        Status::SUCCESS
    }

    fn create_sq(&mut self, number: usize, entries: u16, flags: u32, ring: u64) -> Status {
        let belongs = flags & 1 == 1 && flags >> 16 == number as u32;
        if !self.fits(number, entries) || !belongs || self.queues[number].cq_entries == 0 {
            return INVALID_QUEUE;
        }
        self.queues[number].reset_sq(ring, entries);
        Status::SUCCESS
    }

    /// A completion queue goes after its submission queue.
    fn delete(&mut self, opcode: u8, number: usize) -> Status {
        let Some(queue) = self.queues.get_mut(number).filter(|_| number > 0) else {
            return INVALID_QUEUE;
        };
        match opcode {
            DELETE_SQ if queue.sq_entries != 0 => queue.sq_entries = 0,
            DELETE_CQ if queue.cq_entries != 0 && queue.sq_entries == 0 => queue.cq_entries = 0,
            _ => return INVALID_DELETION,
        }
        Status::SUCCESS
    }
}
