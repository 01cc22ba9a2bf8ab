//! Files that were asked for, by canonical path.
//!
//! Bounded by entries and by bytes of content; the second-chance (CLOCK) rule chooses what goes.

use std::hash::BuildHasher;
use std::rc::Rc;
use std::time::SystemTime;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use millstream_buf::{BLOCK_BYTES, FRAME_BYTES, IoBuf};
use millstream_disk::{File, FileStat};
use millstream_timer::Instant;

use crate::config::CacheConfig;
use crate::date;
use crate::response::field;

/// The bytes of a file.
#[derive(Clone)]
pub(crate) enum Content {
    /// On the disk.
    File(File),
    /// In arena buffers.
    Memory(Rc<[IoBuf]>),
}

/// The head of a 200 response, and behind it the whole file if that is small enough to share the
/// buffer.
#[derive(Clone)]
pub(crate) struct Page {
    pub buf: IoBuf,
    pub head_len: usize,
    /// The second whose `Date` it has.
    pub tick: u64,
}

pub(crate) struct Entry {
    path: Box<[u8]>,
    hash: u64,
    pub stat: FileStat,
    pub content: Content,
    pub page: Option<Page>,
    /// `Content-Type`'s line.
    pub type_line: Box<[u8]>,
    pub etag: Box<[u8]>,
    /// Last change in whole seconds.
    pub modified: SystemTime,
    /// The lines of `ETag` and `Last-Modified`.
    pub validator_lines: Box<[u8]>,
    /// Until when the name need not be looked at again.
    pub valid_until: Instant,
    /// Times asked for since it was opened.
    pub uses: u32,
    /// Its content is being read.
    pub filling: bool,
    referenced: bool,
    /// Tells it from others that had the same place before.
    serial: u64,
}

impl Entry {
    /// An entry for a file that was just opened. `now` bounds `Last-Modified` (RFC 9110 section
    /// 8.8.2.1).
    pub fn new(path: &[u8], name: &[u8], file: File, now: SystemTime) -> Self {
        let stat = file.stat();
        let modified = date::clamp(stat.modified.min(now));
        let nanos = stat
            .modified
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        // Files of two images may agree in time and length.
        let etag = match stat.volume {
            0 => format!("\"{nanos:x}-{:x}\"", stat.len),
            volume => format!("\"{nanos:x}-{:x}-{volume:x}\"", stat.len),
        };
        let etag = etag.into_bytes();
        let mut validator_lines = Vec::with_capacity(96);
        field(&mut validator_lines, "Last-Modified", &date::text(modified));
        field(&mut validator_lines, "ETag", &etag);
        let mut type_line = Vec::with_capacity(48);
        let mime = content_type(name);
        field(&mut type_line, "Content-Type", mime.as_bytes());
        let content =
            if stat.len == 0 { Content::Memory(Rc::from([])) } else { Content::File(file) };
        Self {
            path: path.into(),
            hash: 0,
            stat,
            content,
            page: None,
            type_line: type_line.into(),
            etag: etag.into(),
            modified,
            validator_lines: validator_lines.into(),
            valid_until: Instant::ZERO,
            uses: 0,
            filling: false,
            referenced: true,
            serial: 0,
        }
    }

    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Whether what it would send is what it was when it was looked at: a file that has changed since
    /// would end its transfer, where it can be opened anew.
    #[inline]
    pub fn is_current(&self) -> bool {
        match &self.content {
            Content::File(file) => file.check_unchanged().is_ok(),
            Content::Memory(_) => true,
        }
    }

    /// Bytes of arena buffers that it holds, the pages of heads not counted.
    fn held_bytes(&self) -> usize {
        match &self.content {
            Content::File(_) => 0,
            Content::Memory(slices) => slices.iter().map(IoBuf::pinned_bytes).sum(),
        }
    }
}

/// The type of a file by its name.
fn content_type(name: &[u8]) -> String {
    let file = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let extension = file.iter().rposition(|&byte| byte == b'.').and_then(|dot| file.get(dot + 1..));
    let guess = extension
        .and_then(|extension| std::str::from_utf8(extension).ok())
        .and_then(|extension| mime_guess::from_ext(extension).first_raw())
        .unwrap_or("application/octet-stream");
    if guess.starts_with("text/") { format!("{guess}; charset=utf-8") } else { guess.to_owned() }
}

/// Which entry: a place, and who is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub slot: u32,
    serial: u64,
}

#[cfg(test)]
impl EntryId {
    pub fn new(slot: u32, serial: u64) -> Self {
        Self { slot, serial }
    }
}

pub(crate) struct FileCache {
    hasher: RandomState,
    table: HashTable<u32>,
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
    serial: u64,
}

impl FileCache {
    pub fn new(config: &CacheConfig) -> Self {
        let entries = config.entries.clamp(1, 1 << 24);
        Self {
            hasher: RandomState::default(),
            table: HashTable::with_capacity(entries),
            slots: std::iter::repeat_with(|| None).take(entries).collect(),
            free: (0..entries as u32).rev().collect(),
            hand: 0,
            bytes: 0,
            bytes_max: config.bytes,
            serial: 0,
        }
    }

    /// The place of a path.
    #[inline]
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let slots = &self.slots;
        let is_it = |slot: &u32| matches!(slots.get(*slot as usize), Some(Some(entry)) if *entry.path == *path);
        self.table.find(self.hasher.hash_one(path), is_it).copied()
    }

    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        let entry = self.slots.get_mut(slot as usize)?.as_mut()?;
        entry.referenced = true;
        Some(entry)
    }

    /// The entry, if it is still the same one.
    pub fn named_mut(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.slots.get_mut(id.slot as usize)?.as_mut().filter(|entry| entry.serial == id.serial)
    }

    /// The place of an entry, if it is still the same one.
    #[inline]
    pub fn place_of(&self, id: EntryId) -> Option<u32> {
        let entry = self.slots.get(id.slot as usize)?.as_ref()?;
        (entry.serial == id.serial).then_some(id.slot)
    }

    pub fn id(&self, slot: u32) -> Option<EntryId> {
        let serial = self.slots.get(slot as usize)?.as_ref()?.serial;
        Some(EntryId { slot, serial })
    }

    /// Adds an entry, in the place of another if there is none free. The path must not be in yet.
    pub fn insert(&mut self, mut entry: Entry) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.evict(|_| true)?;
                self.free.pop()?
            }
        };
        self.serial += 1;
        entry.serial = self.serial;
        entry.hash = self.hasher.hash_one(entry.path());
        self.bytes += entry.held_bytes();
        let hash = entry.hash;
        *self.slots.get_mut(slot as usize)? = Some(entry);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.table.insert_unique(hash, slot, |slot| match slots.get(*slot as usize) {
            Some(Some(entry)) => entry.hash,
            _ => hasher.hash_one(b""),
        });
        Some(slot)
    }

    pub fn remove(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        self.bytes -= entry.held_bytes();
        if let Ok(found) = self.table.find_entry(entry.hash, |other| *other == slot) {
            found.remove();
        }
        self.free.push(slot);
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        (0..self.slots.len() as u32).for_each(|slot| self.remove(slot));
    }

    /// Puts content in place of a file's, if the bound allows: others may have to go for it.
    pub fn keep_content(&mut self, id: EntryId, slices: Rc<[IoBuf]>) -> bool {
        let bytes: usize = slices.iter().map(IoBuf::pinned_bytes).sum();
        if bytes > self.bytes_max || self.named_mut(id).is_none() {
            return false;
        }
        let held = self.named_mut(id).map_or(0, |entry| entry.held_bytes());
        while self.bytes - held + bytes > self.bytes_max {
            let others = |slot: u32, entry: &Entry| slot != id.slot && entry.held_bytes() > 0;
            if self.evict_where(others).is_none() {
                return false;
            }
        }
        let Some(entry) = self.named_mut(id) else { return false };
        entry.content = Content::Memory(slices);
        entry.page = None;
        self.bytes = self.bytes - held + bytes;
        true
    }

    /// Whether `more` bytes of content could be kept at all.
    pub fn could_keep(&self, more: usize) -> bool {
        more.div_ceil(BLOCK_BYTES) * BLOCK_BYTES <= self.bytes_max
            || more <= FRAME_BYTES.min(self.bytes_max)
    }

    /// Lets go of an entry that holds a file open; `None` if there is none.
    pub fn evict_open_file(&mut self) -> Option<()> {
        self.evict(|entry| matches!(entry.content, Content::File(_)))
    }

    fn evict(&mut self, may_go: impl Fn(&Entry) -> bool) -> Option<()> {
        self.evict_where(|_, entry| may_go(entry))
    }

    /// Twice round: the first time takes the marks off, the second must find something.
    fn evict_where(&mut self, may_go: impl Fn(u32, &Entry) -> bool) -> Option<()> {
        for _ in 0..self.slots.len() * 2 {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(Some(entry)) = self.slots.get_mut(slot) else { continue };
            if !may_go(slot as u32, entry) {
                continue;
            }
            if !std::mem::take(&mut entry.referenced) {
                self.remove(slot as u32);
                return Some(());
            }
        }
        None
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: usize, bytes: usize) -> FileCache {
        FileCache::new(&CacheConfig { entries, bytes, ..CacheConfig::default() })
    }

    fn entry(path: &str) -> Entry {
        let file = File::in_memory(path.as_bytes().to_vec());
        Entry::new(path.as_bytes(), path.as_bytes(), file, SystemTime::now())
    }

    #[test]
    fn entries_are_bounded_and_the_unused_go_first() {
        let mut cache = cache(3, 1 << 20);
        for path in ["/a", "/b", "/c"] {
            cache.insert(entry(path)).unwrap();
        }
        cache.insert(entry("/d")).unwrap();
        assert_eq!(cache.len(), 3);
        assert_eq!(cache.find(b"/a"), None, "the hand began there");
        // All marks but that of `/d` are off now; a use sets one again.
        let b = cache.find(b"/b").unwrap();
        cache.get_mut(b).unwrap();
        cache.insert(entry("/e")).unwrap();
        assert!(cache.find(b"/b").is_some() && cache.find(b"/c").is_none());
    }

    #[test]
    fn content_is_bounded_in_bytes() {
        let mut cache = cache(8, 250);
        let body = || Rc::from([IoBuf::from(vec![7u8; 100])]);
        for path in ["/a", "/b", "/c"] {
            let slot = cache.insert(entry(path)).unwrap();
            let id = cache.id(slot).unwrap();
            assert!(cache.keep_content(id, body()));
        }
        assert_eq!(cache.bytes, 200);
        assert_eq!(cache.len(), 2, "one had to go");
        let slot = cache.find(b"/c").unwrap();
        let id = cache.id(slot).unwrap();
        assert!(cache.keep_content(id, body()), "in place of what it has");
        assert_eq!(cache.bytes, 200);
        assert!(!cache.keep_content(id, Rc::from([IoBuf::from(vec![7u8; 251])])));
        cache.remove(slot);
        assert_eq!(cache.bytes, 100);
        assert!(!cache.keep_content(id, body()), "it is no more");
        let next = cache.insert(entry("/c")).unwrap();
        assert_eq!(next, slot, "the same place");
        assert!(cache.named_mut(id).is_none(), "but another entry");
    }

    #[test]
    fn types_come_from_names() {
        for (name, want) in [
            (&b"a/b.html"[..], "text/html; charset=utf-8"),
            (b"x.JPG", "image/jpeg"),
            (b"x.json", "application/json"),
            (b"x.mp4", "video/mp4"),
            (b"a.html/x", "application/octet-stream"),
            (b"README", "application/octet-stream"),
            (b"x.\xff", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), want);
        }
    }
}
