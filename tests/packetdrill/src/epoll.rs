//! `epoll`: a set of descriptors to wait for.

use crate::socket::{Kind, Outcome, Socket, Sockets};
use crate::symbols::{EPOLLET, EPOLLONESHOT, Errno, POLLERR, POLLHUP};

/// A descriptor of the set.
#[derive(Clone, Copy, Debug)]
struct Watched {
    fd: i32,
    events: i64,
    data: u64,
    /// What was told already, where only changes are told.
    told: i64,
    /// Told once, and not to be told again before it is changed.
    spent: bool,
}

/// A set.
#[derive(Debug, Default)]
pub(crate) struct Epoll {
    watched: Vec<Watched>,
}

impl Epoll {
    pub fn forget(&mut self, fd: i32) {
        self.watched.retain(|watched| watched.fd != fd);
    }
}

impl Sockets {
    /// Makes a set.
    pub fn epoll_create(&mut self) -> i32 {
        self.install(Socket::new(Kind::Epoll(Epoll::default()), false))
    }

    /// Adds (1), removes (2) or changes (3) a descriptor of a set.
    ///
    /// # Errors
    /// It is in the set, or is not.
    pub fn epoll_control(
        &mut self,
        set: i32,
        operation: i64,
        fd: i32,
        events: i64,
        data: u64,
    ) -> Outcome<()> {
        self.socket_at(fd)?;
        let Kind::Epoll(epoll) = &mut self.socket_at(set)?.kind else {
            return Err(Errno::EINVAL);
        };
        let known = epoll.watched.iter().position(|watched| watched.fd == fd);
        let new = Watched { fd, events, data, told: 0, spent: false };
        match (operation, known) {
            (1, None) => epoll.watched.push(new),
            (1, Some(_)) => return Err(Errno::EEXIST),
            (2 | 3, None) => return Err(Errno::ENOENT),
            (2, Some(at)) => {
                epoll.watched.remove(at);
            }
            (3, Some(at)) => epoll.watched[at] = new,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// What the descriptors of a set are ready for, at most `max` of them: events and data.
    ///
    /// # Errors
    /// It is not a set.
    pub fn epoll_ready(&mut self, set: i32, max: usize) -> Outcome<Vec<(i64, u64)>> {
        let Kind::Epoll(epoll) = &mut self.socket_at(set)?.kind else {
            return Err(Errno::EINVAL);
        };
        let mut watched = std::mem::take(&mut epoll.watched);
        let mut ready = Vec::new();
        for entry in &mut watched {
            let wanted = entry.events | POLLERR | POLLHUP;
            let now = self.readiness(entry.fd) & wanted;
            let news = if entry.events & EPOLLET != 0 { now & !entry.told } else { now };
            if news != 0 && !entry.spent && ready.len() < max {
                ready.push((now, entry.data));
                entry.spent = entry.events & EPOLLONESHOT != 0;
                entry.told = now;
            } else {
                // What is over may come again.
                entry.told &= now;
            }
        }
        if let Kind::Epoll(epoll) = &mut self.socket_at(set)?.kind {
            epoll.watched = watched;
        }
        Ok(ready)
    }
}
