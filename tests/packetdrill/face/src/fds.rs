//! Descriptors that are the system's too: packetdrill closes what it finds open at the end.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;

/// The system's descriptors in the place of the sockets'.
#[derive(Default)]
pub(crate) struct Fds {
    /// The socket behind each, and the file that holds the number. Whoever closes the number with
    /// the system's own call takes it from the file, which is therefore never dropped.
    sockets: HashMap<i32, i32>,
}

impl Fds {
    /// A number of the system's for a socket.
    pub fn open(&mut self, socket: i32) -> Option<i32> {
        let file = File::open("/dev/null").ok()?;
        let fd = file.as_raw_fd();
        std::mem::forget(file);
        self.sockets.insert(fd, socket);
        Some(fd)
    }

    /// The socket behind a number; -1 if there is none.
    pub fn socket(&self, fd: i32) -> i32 {
        self.sockets.get(&fd).copied().unwrap_or(-1)
    }

    /// Whether a number stands for a socket.
    pub fn owns(&self, fd: i32) -> bool {
        self.sockets.contains_key(&fd)
    }

    /// The number is free again.
    pub fn close(&mut self, fd: i32) {
        if self.sockets.remove(&fd).is_some() {
            // Opened above and forgotten there, so that this is its only owner.
            drop(crate::owned(fd));
        }
    }
}
