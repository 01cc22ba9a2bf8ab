//! Helpers that look names up, so that a loop which must not wait does not.
//!
//! As in the server Flash (Pai, Druschel, Zwaenepoel, USENIX 1999): a helper does what may block, and
//! gives back a notice and nothing else. What it has brought into the kernel's caches, the loop
//! then finds there by itself.

use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::source::Source;

/// Look-ups that may wait for a helper.
const QUEUED_MAX: usize = 256;

struct Job {
    source: Source,
    path: Box<[u8]>,
    token: u64,
}

/// A small pool of threads that look names up.
#[derive(Debug)]
pub struct Lookups {
    /// `None` once the pool is being dropped.
    jobs: Option<Sender<Job>>,
    notices: Receiver<u64>,
    helpers: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl Lookups {
    /// Starts `threads` helpers, at least one. They end when the pool is dropped, after what they are
    /// at.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, jobs_out) = bounded::<Job>(QUEUED_MAX);
        // Never full: a notice has room for each job that is taken.
        let threads = threads.max(1);
        let (notices_in, notices) = bounded(QUEUED_MAX + threads);
        let mut pool = Self { jobs: Some(jobs), notices, helpers: Vec::new(), in_flight: 0 };
        for _ in 0..threads {
            let (jobs, notices) = (jobs_out.clone(), notices_in.clone());
            let helper = std::thread::Builder::new()
                .name("millstream-names".into())
                .spawn(move || help(&jobs, &notices))?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Has `path` looked up; [`Self::notice`] gives `token` back when that is done. `false` if too many
    /// wait already.
    pub fn ask(&mut self, source: &Source, path: &[u8], token: u64) -> bool {
        let Some(jobs) = &self.jobs else { return false };
        if self.in_flight >= QUEUED_MAX {
            return false;
        }
        match jobs.try_send(Job { source: source.clone(), path: path.into(), token }) {
            Ok(()) => {
                self.in_flight += 1;
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// The token of a look-up that is done.
    pub fn notice(&mut self) -> Option<u64> {
        let token = self.notices.try_recv().ok()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(token)
    }

    /// Look-ups whose notice was not taken.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

fn help(jobs: &Receiver<Job>, notices: &Sender<u64>) {
    while let Ok(job) = jobs.recv() {
        // The outcome stays in the kernel's caches.
        let _ = job.source.open_file(&job.path);
        if notices.send(job.token).is_err() {
            break;
        }
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        self.jobs = None;
        for helper in self.helpers.drain(..) {
            if helper.join().is_err() {
                tracing::error!("a thread that looks names up panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::OpenError;
    use crate::root::Root;
    use std::time::{Duration, Instant};

    #[test]
    fn every_question_has_its_notice() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "file").unwrap();
        let source = Source::from(Root::open(folder.path()).unwrap());
        let mut pool = Lookups::start(2).unwrap();
        let mut asked = 0;
        while pool.ask(&source, b"file", asked) && asked < 1000 {
            asked += 1;
        }
        assert!(asked >= QUEUED_MAX as u64, "{asked}");
        let mut seen = vec![false; asked as usize];
        let deadline = Instant::now() + Duration::from_secs(60);
        while pool.in_flight() > 0 {
            assert!(Instant::now() < deadline);
            if let Some(token) = pool.notice() {
                assert!(!std::mem::replace(&mut seen[token as usize], true), "once each");
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn what_is_not_at_hand_is_at_hand_after_a_helper_looked() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "file").unwrap();
        let root = Root::open(folder.path()).unwrap();
        if root.stat_at_hand(b"") == Err(OpenError::WouldBlock) {
            eprintln!("not run: this kernel does not look into its caches alone (before 5.12)");
            return;
        }
        assert_eq!(root.open_file_at_hand(b"file").unwrap().len(), 4, "it was just made");
        assert_eq!(root.stat_at_hand(b"file"), root.stat(b"file"));
        assert_eq!(root.open_file_at_hand(b"../file").err(), Some(OpenError::Forbidden));
        // A name that nobody has asked for is in no cache, though there is none such.
        assert_eq!(root.open_file_at_hand(b"never").err(), Some(OpenError::WouldBlock));
        let mut pool = Lookups::start(1).unwrap();
        assert!(pool.ask(&root.clone().into(), b"never", 7));
        let deadline = Instant::now() + Duration::from_secs(60);
        while pool.notice() != Some(7) {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(root.open_file(b"never").err(), Some(OpenError::NotFound));
    }
}
