//! Where the served files are, and what becomes of it while they are served.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use millstream::disk::erofs::Image;
use millstream::disk::{Root, Source};

use crate::error::AppError;
use crate::signals::Reload;

/// How often the thread looks whether it is wanted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often it looks whether another image has that name.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What `--source` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Dir(PathBuf),
    /// An image in a file or on a block device.
    Image(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            Some(("image", path)) if !path.is_empty() => Ok(Self::Image(path.into())),
            _ => Err("write it as dir:PATH or image:FILE".to_owned()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "{}", path.display()),
            Self::Image(path) => write!(f, "image {}", path.display()),
        }
    }
}

impl Place {
    /// Opens it.
    ///
    /// # Errors
    /// [`AppError::Usage`] with what is wrong.
    pub fn open(&self) -> Result<Source, AppError> {
        match self {
            Self::Dir(path) => Root::open(path).map(Source::from).map_err(AppError::usage),
            Self::Image(path) => Image::open(path).map(Source::from).map_err(AppError::usage),
        }
    }

    /// What tells whether another image has the name of this one by now.
    fn stamp(&self) -> Option<(u64, u64, i64, i64, u64)> {
        let Self::Image(path) = self else { return None };
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    }
}

/// What a source says of itself in one line.
pub fn describe(source: &Source) -> String {
    match source {
        Source::Dir(_) => "the directory was opened again".to_owned(),
        Source::Image(image) => {
            let uuid: String = image.uuid().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} names, {} MiB, UUID {uuid}", image.names(), image.image_bytes() >> 20)
        }
    }
}

/// A thread that opens the source anew when another image gets its name, or when asked to. Opening
/// may take a while, so the shard's thread does not do it.
pub struct Watch {
    fresh: Receiver<Result<Source, AppError>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Begins to watch a place that was just opened.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(place: Place, reload: Reload) -> Result<Self, AppError> {
        let (send, fresh) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let stamp = place.stamp();
        std::thread::Builder::new()
            .name("millstream-source".into())
            .spawn(move || watch(&place, stamp, &reload, &stopped, &send))
            .map_err(AppError::runtime)?;
        Ok(Self { fresh, stop })
    }

    /// What was opened anew, or why it could not be: then the old one is to be served on.
    pub fn take(&self) -> Option<Result<Source, AppError>> {
        self.fresh.try_recv().ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(
    place: &Place,
    mut stamp: Option<(u64, u64, i64, i64, u64)>,
    reload: &Reload,
    stop: &AtomicBool,
    out: &Sender<Result<Source, AppError>>,
) {
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        let asked = reload.was_asked();
        if !asked && looked.elapsed() < WATCH_EVERY {
            continue;
        }
        looked = Instant::now();
        let now = place.stamp();
        // A name that is gone for a moment is no reason for anything.
        if asked || (now.is_some() && now != stamp) {
            stamp = now;
            if out.send(place.open()).is_err() {
                return;
            }
        }
    }
}

/// Whether a path names a block device.
pub fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!("dir:/srv/a:b".parse(), Ok(Place::Dir("/srv/a:b".into())));
        assert_eq!("image:x.img".parse(), Ok(Place::Image("x.img".into())));
        for bad in ["/srv", "dir:", "disk:x", "image"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
