//! From a request to what is sent for it.

use std::ops::Range;
use std::rc::Rc;

use millstream_buf::{Arena, BLOCK_BYTES, FRAME_BYTES, IoBuf, SizeClass};
use millstream_core::Stack;
use millstream_disk::{File, OpenError, Source};
use millstream_timer::Instant;

use crate::cache::{Content, Entry, EntryId, FileCache, Page};
use crate::conditional::{Outcome, Validators, evaluate, range_counts};
use crate::config::ServerConfig;
use crate::date::Today;
use crate::fill::Filler;
use crate::names::{Names, Ticket};
use crate::path;
use crate::range::{self, Wanted};
use crate::repeats::Repeats;
use crate::request::{self, Method, Parsed, Request};
use crate::response::{self, Persist, Status};
use crate::stats::HttpStats;

/// Times that a file must be asked for before its content is kept: one that is fetched once leaves
/// the others alone.
const USES_BEFORE_FILL: u32 = 2;

/// A page shorter than this is summed faster than its sum is looked up.
const MEMO_BYTES_MIN: usize = 512;

/// Where the head of a response is.
pub(crate) enum Head {
    /// In a buffer; for small files with the body behind it.
    Shared(IoBuf),
    /// In [`Site::scratch`], until the next answer is made.
    Scratch,
}

pub(crate) enum Body {
    /// None, or it is with the head.
    None,
    /// Bytes of slices.
    Slices(Rc<[IoBuf]>, Range<usize>),
    /// Bytes of a file.
    File(File, Range<u64>),
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next request is served.
    Stay,
    /// It is closed; what the peer still sends is thrown away.
    Close,
}

pub(crate) struct Reply {
    pub head: Head,
    pub body: Body,
    pub then: Then,
}

pub(crate) enum Answer {
    /// The request is not whole yet.
    Partial,
    /// The reply to the request in the first bytes.
    Reply(Reply, usize),
    /// Its name is being looked up; [`Site::answer_known`] answers it when that is done.
    Wait(Ticket),
}

/// What all connections of a server share.
pub(crate) struct Site {
    source: Source,
    stack: Stack,
    arena: Arena,
    config: ServerConfig,
    pub cache: FileCache,
    /// Requests that [`Self::hit`] answered.
    repeats: Repeats,
    pub filler: Filler,
    pub names: Names,
    /// A task looks after fills and names.
    pub attended: bool,
    pub today: Today,
    pub stats: HttpStats,
    /// The head of the response that is being made, and the body of one line that some have.
    pub scratch: Vec<u8>,
    /// The canonical path that is being looked up.
    canonical: Vec<u8>,
    /// No connection stays open after its response.
    pub draining: bool,
}

impl Site {
    pub fn new(source: Source, stack: &Stack, config: ServerConfig, filler: Filler) -> Self {
        Self {
            source,
            stack: stack.clone(),
            arena: stack.arena(),
            config,
            cache: FileCache::new(&config.cache),
            repeats: Repeats::new(),
            filler,
            names: Names::new(config.lookup_threads),
            attended: false,
            today: Today::new(config.wall_clock, stack.now()),
            stats: HttpStats::default(),
            scratch: Vec::with_capacity(1024),
            canonical: Vec::with_capacity(256),
            draining: false,
        }
    }

    /// Looks all names up in `source` from now on. What is being sent goes on from where it was.
    pub fn set_source(&mut self, source: Source) {
        self.source = source;
        self.cache.clear();
    }

    /// Answers the first request in `bytes`.
    #[inline]
    pub fn answer(&mut self, bytes: &[u8], now: Instant) -> Answer {
        if let Some(id) = self.repeats.find(bytes)
            && !self.draining
        {
            self.today.update(now);
            if let Some(slot) = self.cache.place_of(id)
                && let Some(reply) = self.hit(slot, now)
            {
                return Answer::Reply(reply, bytes.len());
            }
        }
        let (request, len) = match request::parse(bytes) {
            Parsed::Request(request, len) => (request, len),
            Parsed::Partial => return Answer::Partial,
            Parsed::Bad(status) => {
                self.stats.parse_errors += 1;
                return Answer::Reply(self.refuse(status, true, now), bytes.len());
            }
        };
        self.today.update(now);
        if len > self.config.head_bytes_max {
            return Answer::Reply(self.refuse(Status::FIELDS_TOO_LARGE, true, now), len);
        }
        let plain = request.method == Method::Get
            && !request.choosy
            && !request.has_body
            && request.version == 1
            && request.keep_alive
            && !self.draining;
        // Keys are decoded: a target with an escape in it may look like the key of another file.
        if plain
            && !request.path.contains(&b'%')
            && let Some(slot) = self.cache.find(request.path)
            && let Some(reply) = self.hit(slot, now)
        {
            if len == bytes.len()
                && let Some(id) = self.cache.id(slot)
            {
                self.repeats.keep(bytes, id);
            }
            return Answer::Reply(reply, len);
        }
        match self.consider(&request, now, self.names.have_helpers()) {
            Ok(reply) => Answer::Reply(reply, len),
            Err(ticket) => Answer::Wait(ticket),
        }
    }

    /// As [`Self::answer`] for a request whose name a helper has looked up: it is not waited for
    /// again, whatever the kernel has forgotten meanwhile.
    pub fn answer_known(&mut self, bytes: &[u8], now: Instant) -> Answer {
        let Parsed::Request(request, len) = request::parse(bytes) else {
            return self.answer(bytes, now);
        };
        self.today.update(now);
        match self.consider(&request, now, false) {
            Ok(reply) => Answer::Reply(reply, len),
            Err(ticket) => Answer::Wait(ticket),
        }
    }

    /// The reply to a GET without conditions, if all of it is at hand.
    #[inline]
    fn hit(&mut self, slot: u32, now: Instant) -> Option<Reply> {
        let tick = self.today.tick;
        let entry = self.cache.get_mut(slot)?;
        let page = entry.page.as_ref().filter(|page| page.tick == tick)?;
        if now >= entry.valid_until || entry.uses < USES_BEFORE_FILL || !entry.is_current() {
            return None;
        }
        let head = Head::Shared(page.buf.clone());
        let len = entry.stat.len;
        let body = match &entry.content {
            _ if page.buf.len() > page.head_len => {
                self.stats.cache_hits += 1;
                Body::None
            }
            Content::Memory(slices) => {
                self.stats.cache_hits += 1;
                Body::Slices(Rc::clone(slices), 0..len as usize)
            }
            Content::File(file) if len > self.config.cache.file_bytes_max as u64 => {
                Body::File(file.clone(), 0..len)
            }
            // It may be time to have it read.
            Content::File(_) => return None,
        };
        self.stats.requests += 1;
        self.stats.status_2xx += 1;
        self.stats.body_bytes += len;
        Some(Reply { head, body, then: Then::Stay })
    }

    /// Everything that is not the fast way. `at_hand`: what would wait for a disk is left to a helper.
    fn consider(
        &mut self,
        request: &Request<'_>,
        now: Instant,
        at_hand: bool,
    ) -> Result<Reply, Ticket> {
        let head_only = request.method == Method::Head;
        let persist = match (request.keep_alive && !self.draining, request.version) {
            (true, 0) => Persist::KeepAlive,
            (true, _) => Persist::Silent,
            (false, _) => Persist::Close,
        };
        match request.method {
            _ if request.has_body && matches!(request.method, Method::Get | Method::Head) => {
                return Ok(self.refuse(Status::CONTENT_TOO_LARGE, !head_only, now));
            }
            Method::NotAllowed if request.has_body => {
                return Ok(self.refuse(Status::METHOD_NOT_ALLOWED, true, now));
            }
            Method::Unknown => return Ok(self.refuse(Status::NOT_IMPLEMENTED, true, now)),
            Method::NotAllowed => {
                return Ok(self.plain(Status::METHOD_NOT_ALLOWED, persist, true));
            }
            Method::Get | Method::Head => {}
        }
        let mut canonical = std::mem::take(&mut self.canonical);
        let reply = match path::canonicalize(request.path, &mut canonical) {
            Ok(()) => match self.look_up(&canonical, now, at_hand) {
                Ok(slot) => self.file(slot, request, persist),
                Err(OpenError::WouldBlock) => {
                    let name = path::file_name(&canonical);
                    match self.names.ask(&self.source, &name) {
                        Some(ticket) => {
                            self.stats.lookups_waited += 1;
                            self.canonical = canonical;
                            return Err(ticket);
                        }
                        None => self.plain(Status::UNAVAILABLE, persist, !head_only),
                    }
                }
                Err(OpenError::IsDirectory) => self.add_slash(&canonical, persist, !head_only),
                Err(error) => self.plain(status_of(error), persist, !head_only),
            },
            Err(path::BadPath) => self.plain(Status::BAD_REQUEST, persist, !head_only),
        };
        self.canonical = canonical;
        Ok(reply)
    }

    /// The entry of a path, looked at again if that is due.
    fn look_up(&mut self, canonical: &[u8], now: Instant, at_hand: bool) -> Result<u32, OpenError> {
        let stat = |source: &Source, name: &[u8]| {
            if at_hand { source.stat_at_hand(name) } else { source.stat(name) }
        };
        let open = |source: &Source, name: &[u8]| {
            if at_hand { source.open_file_at_hand(name) } else { source.open_file(name) }
        };
        let name = path::file_name(canonical);
        if let Some(slot) = self.cache.find(canonical)
            && let Some(entry) = self.cache.get_mut(slot)
        {
            if now < entry.valid_until && entry.is_current() {
                return Ok(slot);
            }
            match stat(&self.source, &name) {
                Ok(stat) if stat == entry.stat => {
                    entry.valid_until = now + self.config.cache.valid;
                    return Ok(slot);
                }
                Err(OpenError::WouldBlock) => return Err(OpenError::WouldBlock),
                _ => {}
            }
            self.cache.remove(slot);
        }
        let mut opened = open(&self.source, &name);
        while opened.as_ref().is_err_and(|error| *error == OpenError::TooManyOpen)
            && self.cache.evict_open_file().is_some()
        {
            opened = open(&self.source, &name);
        }
        // A directory is asked for by its own name with a slash; its index may not be one too.
        let file = opened.map_err(|error| match error {
            OpenError::IsDirectory if canonical.ends_with(b"/") => OpenError::NotFound,
            error => error,
        })?;
        let mut entry = Entry::new(canonical, &name, file, self.today.now);
        entry.valid_until = now + self.config.cache.valid;
        self.cache.insert(entry).ok_or(OpenError::TooManyOpen)
    }

    /// The reply that sends a file, or says why not.
    fn file(&mut self, slot: u32, request: &Request<'_>, persist: Persist) -> Reply {
        let then = if persist == Persist::Close { Then::Close } else { Then::Stay };
        let head_only = request.method == Method::Head;
        self.fill_if_worth_it(slot);
        let Some(entry) = self.cache.get_mut(slot) else {
            return self.plain(Status::INTERNAL_ERROR, persist, !head_only);
        };
        let len = entry.stat.len;
        let date = &self.today.text;
        let mut range = 0..len;
        let mut status = Status::OK;
        if request.choosy {
            let validators = Validators { etag: &entry.etag, modified: entry.modified };
            match evaluate(&request.fields, &validators) {
                Outcome::Proceed => {}
                Outcome::NotModified => {
                    let out = &mut self.scratch;
                    response::begin(out, Status::NOT_MODIFIED, date, persist);
                    out.extend_from_slice(&entry.validator_lines);
                    out.extend_from_slice(b"\r\n");
                    self.stats.count_status(Status::NOT_MODIFIED.0);
                    return Reply { head: Head::Scratch, body: Body::None, then };
                }
                Outcome::Failed => {
                    return self.plain(Status::PRECONDITION_FAILED, persist, !head_only);
                }
            }
            // A range counts for GET alone (RFC 9110 section 14.2).
            if let Some(field) = request.fields.range
                && !head_only
                && range_counts(request.fields.if_range, &validators)
            {
                match range::parse(field, len) {
                    Wanted::Whole => {}
                    Wanted::Part(part) => {
                        range = part;
                        status = Status::PARTIAL_CONTENT;
                    }
                    Wanted::Unsatisfiable => return self.unsatisfiable(len, persist),
                }
            }
        }
        let whole = status == Status::OK && persist == Persist::Silent;
        let head = if whole && entry.uses >= USES_BEFORE_FILL {
            page(entry, &self.today, &self.arena, &mut self.scratch)
        } else {
            None
        };
        let (head, with_body) = match head {
            Some(page) if head_only => (Head::Shared(page.buf.slice(0..page.head_len)), false),
            Some(page) => (Head::Shared(page.buf.clone()), page.buf.len() > page.head_len),
            None => {
                write_head(&mut self.scratch, entry, &range, status, date, persist);
                (Head::Scratch, false)
            }
        };
        if !head_only {
            self.stats.body_bytes += range.end - range.start;
            self.stats.cache_hits += u64::from(matches!(entry.content, Content::Memory(_)));
        }
        let body = match &entry.content {
            _ if head_only || with_body || range.is_empty() => Body::None,
            Content::Memory(slices) => {
                Body::Slices(Rc::clone(slices), range.start as usize..range.end as usize)
            }
            Content::File(file) => Body::File(file.clone(), range),
        };
        self.stats.count_status(status.0);
        Reply { head, body, then }
    }

    /// Counts a use, and has the content read if the file is small and wanted again.
    fn fill_if_worth_it(&mut self, slot: u32) {
        let max = self.config.cache.file_bytes_max as u64;
        let id = self.cache.id(slot);
        let Some(entry) = self.cache.get_mut(slot) else { return };
        entry.uses = entry.uses.saturating_add(1);
        let len = entry.stat.len;
        let worth = entry.uses >= USES_BEFORE_FILL && !entry.filling && len <= max;
        let Content::File(file) = &entry.content else { return };
        if !worth {
            return;
        }
        let file = file.clone();
        // What transfers have brought in is kept once.
        let block = |offset| self.stack.cached_block(&file, offset as u64);
        let there: Option<Rc<[IoBuf]>> =
            (0..len as usize).step_by(BLOCK_BYTES).map(block).collect();
        if let Some(id) = id
            && there.is_some()
        {
            return self.filled(id, there);
        }
        if let Some(id) = id
            && self.cache.could_keep(len as usize)
            && self.filler.start(&self.arena, id, &file, len as usize)
            && let Some(entry) = self.cache.get_mut(slot)
        {
            entry.filling = true;
        }
    }

    /// Takes content that has been read. A file that shares a buffer with its head is moved there.
    pub fn filled(&mut self, id: EntryId, slices: Option<Rc<[IoBuf]>>) {
        let Some(entry) = self.cache.named_mut(id) else { return };
        entry.filling = false;
        let kept = slices.is_some_and(|slices| {
            let slices = match small_copy(&slices, &self.arena) {
                Some(copy) => Rc::from([copy]),
                None => slices,
            };
            // It is sent more than once, or it would not be here.
            slices.iter().for_each(IoBuf::memoize);
            self.cache.keep_content(id, slices)
        });
        if kept {
            self.stats.cache_fills += 1;
        } else {
            self.stats.cache_fills_failed += 1;
            if let Some(entry) = self.cache.named_mut(id) {
                // Not tried again at once.
                entry.uses = 0;
            }
        }
    }

    fn unsatisfiable(&mut self, len: u64, persist: Persist) -> Reply {
        let status = Status::RANGE_NOT_SATISFIABLE;
        response::begin(&mut self.scratch, status, &self.today.text, persist);
        response::field_fmt(&mut self.scratch, "Content-Range", format_args!("bytes */{len}"));
        self.end(status, persist, true)
    }

    /// Tells the client the name of a directory: relative links in its index need the slash.
    fn add_slash(&mut self, canonical: &[u8], persist: Persist, with_body: bool) -> Reply {
        let status = Status::MOVED_PERMANENTLY;
        response::begin(&mut self.scratch, status, &self.today.text, persist);
        // Canonical, so it begins with one slash: two would name another host.
        self.scratch.extend_from_slice(b"Location: ");
        path::encode(canonical, &mut self.scratch);
        self.scratch.extend_from_slice(b"/\r\n");
        self.end(status, persist, with_body)
    }

    fn plain(&mut self, status: Status, persist: Persist, with_body: bool) -> Reply {
        response::begin(&mut self.scratch, status, &self.today.text, persist);
        if status == Status::METHOD_NOT_ALLOWED {
            response::field(&mut self.scratch, "Allow", b"GET, HEAD");
        }
        if status == Status::UNAVAILABLE {
            response::field(&mut self.scratch, "Retry-After", b"1");
        }
        self.end(status, persist, with_body)
    }

    fn end(&mut self, status: Status, persist: Persist, with_body: bool) -> Reply {
        let len = response::end_plain(&mut self.scratch, status, with_body);
        self.stats.count_status(status.0);
        self.stats.body_bytes += len as u64;
        let then = if persist == Persist::Close { Then::Close } else { Then::Stay };
        Reply { head: Head::Scratch, body: Body::None, then }
    }

    /// The reply to what cannot be followed by another request.
    #[cold]
    pub fn refuse(&mut self, status: Status, with_body: bool, now: Instant) -> Reply {
        self.today.update(now);
        self.plain(status, Persist::Close, with_body)
    }
}

fn status_of(error: OpenError) -> Status {
    match error {
        OpenError::NotFound | OpenError::NotRegular | OpenError::IsDirectory => Status::NOT_FOUND,
        OpenError::Forbidden => Status::FORBIDDEN,
        OpenError::TooManyOpen | OpenError::WouldBlock => Status::UNAVAILABLE,
        OpenError::Io { errno } => {
            tracing::warn!(errno, "a file could not be opened");
            Status::INTERNAL_ERROR
        }
    }
}

fn write_head(
    out: &mut Vec<u8>,
    entry: &Entry,
    range: &Range<u64>,
    status: Status,
    date: &[u8; crate::date::DATE_BYTES],
    persist: Persist,
) {
    let len = entry.stat.len;
    response::begin(out, status, date, persist);
    out.extend_from_slice(&entry.type_line);
    response::field_fmt(out, "Content-Length", format_args!("{}", range.end - range.start));
    if status == Status::PARTIAL_CONTENT {
        let (first, last) = (range.start, range.end.saturating_sub(1));
        response::field_fmt(out, "Content-Range", format_args!("bytes {first}-{last}/{len}"));
    }
    out.extend_from_slice(&entry.validator_lines);
    out.extend_from_slice(b"Accept-Ranges: bytes\r\n\r\n");
}

/// The head of an entry's 200 response with today's date; made anew once a second. `None` if no
/// buffer is free.
fn page<'a>(
    entry: &'a mut Entry,
    today: &Today,
    arena: &Arena,
    scratch: &mut Vec<u8>,
) -> Option<&'a Page> {
    if entry.page.as_ref().is_none_or(|page| page.tick != today.tick) {
        write_head(scratch, entry, &(0..entry.stat.len), Status::OK, &today.text, Persist::Silent);
        let mut buf = arena.alloc(SizeClass::Frame)?;
        let head_len = scratch.len();
        buf.get_mut(..head_len)?.copy_from_slice(scratch);
        let mut end = head_len;
        if let Content::Memory(slices) = &entry.content
            && let [body] = &**slices
            && let Some(room) = buf.get_mut(head_len..head_len + body.len())
        {
            room.copy_from_slice(body);
            end += body.len();
        }
        let buf = buf.freeze(0..end);
        if end >= MEMO_BYTES_MIN {
            buf.memoize();
        }
        entry.page = Some(Page { buf, head_len, tick: today.tick });
    }
    entry.page.as_ref()
}

/// Content of less than a frame buffer, in one, so that it does not hold a whole block.
fn small_copy(slices: &[IoBuf], arena: &Arena) -> Option<IoBuf> {
    let [body] = slices else { return None };
    if body.len() > FRAME_BYTES {
        return None;
    }
    let mut buf = arena.alloc(SizeClass::Frame)?;
    buf.get_mut(..body.len())?.copy_from_slice(body);
    Some(buf.freeze(0..body.len()))
}
