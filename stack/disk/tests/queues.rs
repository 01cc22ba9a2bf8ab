//! Every driver brings the same bytes, on every file system at hand.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use millstream_buf::{Arena, ArenaConfig, BLOCK_BYTES, FRAME_BYTES, HugePages, SizeClass};
use millstream_disk::{
    Completion, Completions, DEPTH_MAX, DiskError, DiskQueue, DiskSetupError, DiskStats, File,
    MemDisk, QueueKind, Read, open_queue,
};
use proptest::prelude::*;

const BLOCKS: usize = 64;

fn arena() -> Arena {
    Arena::new(&ArenaConfig { frames: 64, blocks: BLOCKS, huge_pages: HugePages::Never }).unwrap()
}

/// Both drivers of the kernel; io_uring is missing only where the kernel refuses it, and with
/// MILLSTREAM_REQUIRE_IO_URING set that is a failure.
fn queues(arena: &Arena, depth: usize) -> Vec<Box<dyn DiskQueue>> {
    let mut queues = vec![open_queue(QueueKind::Pread, arena, depth).unwrap()];
    match open_queue(QueueKind::Uring, arena, depth) {
        Ok(queue) => queues.push(queue),
        Err(DiskSetupError::Refused { source }) => {
            let errno = source.raw_os_error();
            assert!(matches!(errno, Some(libc::ENOSYS | libc::EPERM | libc::EACCES)), "{source}");
            assert!(std::env::var_os("MILLSTREAM_REQUIRE_IO_URING").is_none(), "{source}");
            eprintln!("not run with io_uring: the kernel refuses it: {source}");
        }
        Err(error) => panic!("{error}"),
    }
    queues
}

/// A file of its own, removed at the end of the test.
struct Temp(PathBuf);

impl Temp {
    fn new(dir: &Path, bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("millstream-disk-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Directories that may lie on different file systems.
fn directories() -> Vec<PathBuf> {
    let candidates = [
        std::env::temp_dir(),
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        PathBuf::from("/dev/shm"),
    ];
    candidates.into_iter().filter(|dir| dir.is_dir()).collect()
}

/// Bytes of which no two sectors are the same.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn read(arena: &Arena, file: &File, offset: u64, len: usize, token: u64) -> Read {
    let mut buf = arena.alloc(SizeClass::Block).unwrap();
    buf.fill(0xa5);
    Read { file: file.clone(), offset, len, buf, token }
}

/// Waits for all that is in flight.
fn finish(queue: &mut dyn DiskQueue) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut out = Completions::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while queue.in_flight() > 0 {
        queue.poll(&mut out);
        all.extend(out.drain(..));
        assert!(Instant::now() < deadline, "{} does not finish", queue.name());
        std::thread::yield_now();
    }
    all
}

fn read_one(queue: &mut dyn DiskQueue, read: Read) -> Completion {
    assert!(queue.submit(read).is_ok());
    finish(queue).pop().unwrap()
}

#[test]
fn bytes_are_exact_at_every_alignment_and_length() {
    let arena = arena();
    for mut queue in queues(&arena, 8) {
        for dir in directories() {
            for file_len in [0, 1, 511, 512, 513, 4095, 4096, 4097, 3 * BLOCK_BYTES + 1000] {
                let bytes = pattern(file_len);
                let temp = Temp::new(&dir, &bytes);
                let file = temp.open();
                assert_eq!(file.len(), file_len as u64);
                let align = file.align_bytes();
                assert!(align.is_power_of_two() && (512..=BLOCK_BYTES).contains(&align));
                let offsets =
                    (0..file_len + 2 * align).step_by(align.max(file_len / 8 / align * align));
                for offset in offsets {
                    for len in [0, 1, 511, 512, 513, 4096, 5000, BLOCK_BYTES - 1, BLOCK_BYTES] {
                        let want = &bytes[offset.min(file_len)..(offset + len).min(file_len)];
                        let done =
                            read_one(&mut *queue, read(&arena, &file, offset as u64, len, 3));
                        let context = format!("{} {file:?} {offset} {len}", queue.name());
                        assert_eq!(done.result, Ok(want.len()), "{context}");
                        assert!(done.buf[..want.len()] == *want, "{context}");
                        assert_eq!(done.token, 3);
                    }
                }
            }
        }
        let stats = queue.stats();
        assert_eq!((stats.errors, stats.unknown, stats.copied_bytes), (0, 0, 0), "{stats:?}");
    }
    assert_eq!(arena.free(SizeClass::Block), BLOCKS);
}

#[test]
fn many_reads_at_once_come_back_each_with_its_own() {
    let arena = arena();
    let bytes = pattern(40 * BLOCK_BYTES + 77);
    for dir in directories() {
        let temp = Temp::new(&dir, &bytes);
        let file = temp.open();
        for mut queue in queues(&arena, 48) {
            for index in 0..41 {
                let offset = index * BLOCK_BYTES as u64;
                assert!(queue.submit(read(&arena, &file, offset, BLOCK_BYTES, index)).is_ok());
            }
            queue.kick();
            let mut done = finish(&mut *queue);
            done.sort_by_key(|done| done.token);
            assert_eq!(done.len(), 41);
            for (index, done) in done.iter().enumerate() {
                let from = index * BLOCK_BYTES;
                let want = &bytes[from..(from + BLOCK_BYTES).min(bytes.len())];
                assert_eq!((done.token, done.result), (index as u64, Ok(want.len())));
                assert!(done.buf[..want.len()] == *want);
            }
            let stats = queue.stats();
            assert_eq!((stats.reads, stats.bytes), (41, bytes.len() as u64));
        }
    }
}

#[test]
fn a_full_queue_gives_the_read_back() {
    let arena = arena();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(BLOCK_BYTES));
    let file = temp.open();
    for depth in [1, 3] {
        let mut queues = queues(&arena, depth);
        queues.push(Box::new(MemDisk::null(depth).unwrap()));
        for mut queue in queues {
            for token in 0..depth as u64 {
                assert!(queue.submit(read(&arena, &file, 0, 512, token)).is_ok());
            }
            let refused = queue.submit(read(&arena, &file, 512, 700, 99)).unwrap_err();
            assert_eq!((refused.token, refused.offset, refused.len), (99, 512, 700));
            assert!(refused.buf.iter().all(|&byte| byte == 0xa5), "untouched");
            assert_eq!(queue.in_flight(), depth);
            assert_eq!(finish(&mut *queue).len(), depth);
            assert!(queue.submit(refused).is_ok(), "room again");
            finish(&mut *queue);
        }
    }
    assert_eq!(arena.free(SizeClass::Block), BLOCKS);
}

#[test]
fn a_poll_brings_what_there_is_room_for() {
    let arena = arena();
    let file = File::in_memory(pattern(1000));
    let mut queues = queues(&arena, 40);
    queues.push(Box::new(MemDisk::copying(40).unwrap()));
    for mut queue in queues {
        for token in 0..40 {
            assert!(queue.submit(read(&arena, &file, 0, 100, token)).is_ok());
        }
        let mut out = Completions::new();
        queue.poll(&mut out);
        assert_eq!((out.len(), queue.in_flight()), (32, 8));
        queue.poll(&mut out);
        assert_eq!(out.len(), 32, "full already");
        out.clear();
        queue.poll(&mut out);
        assert_eq!(out.iter().map(|done| done.token).collect::<Vec<_>>(), Vec::from_iter(32..40));
    }
}

#[test]
fn a_file_cut_short_is_an_error_and_one_that_grew_is_not_seen() {
    let arena = arena();
    for dir in directories() {
        for mut queue in queues(&arena, 4) {
            let temp = Temp::new(&dir, &pattern(8192));
            let file = temp.open();
            let handle = std::fs::OpenOptions::new().write(true).open(&temp.0).unwrap();
            handle.set_len(10_000).unwrap();
            let done = read_one(&mut *queue, read(&arena, &file, 4096, BLOCK_BYTES, 1));
            assert_eq!(done.result, Ok(4096));
            handle.set_len(1000).unwrap();
            let done = read_one(&mut *queue, read(&arena, &file, 0, BLOCK_BYTES, 1));
            assert_eq!(done.result, Err(DiskError::Truncated), "{} {file:?}", queue.name());
            let done = read_one(&mut *queue, read(&arena, &file, 4096, BLOCK_BYTES, 1));
            assert_eq!(done.result, Err(DiskError::Truncated));
            assert_eq!(queue.stats().errors, 2);
        }
    }
}

#[test]
fn impossible_reads_fail_with_a_sentence_and_give_the_buffer_back() {
    let arena = arena();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(BLOCK_BYTES));
    for file in [temp.open(), File::in_memory(pattern(BLOCK_BYTES))] {
        let mut queues = queues(&arena, 4);
        queues.push(Box::new(MemDisk::null(4).unwrap()));
        for mut queue in queues {
            let unaligned = read_one(&mut *queue, read(&arena, &file, 1, 512, 1));
            let align_bytes = file.align_bytes();
            assert_eq!(unaligned.result, Err(DiskError::Unaligned { offset: 1, align_bytes }));
            let buf = arena.alloc(SizeClass::Frame).unwrap();
            let long = Read { file: file.clone(), offset: 0, len: FRAME_BYTES + 1, buf, token: 2 };
            let error = read_one(&mut *queue, long).result.unwrap_err();
            assert!(matches!(error, DiskError::BadBuffer { .. }));
            assert!(error.to_string().contains("a buffer of 2048 bytes cannot take 2049"));
            assert_eq!(queue.stats().errors, 2);
        }
    }
}

#[test]
fn buffers_that_are_not_registered_work_too() {
    let (registered, other) = (arena(), arena());
    let bytes = pattern(5000);
    let temp = Temp::new(&std::env::temp_dir(), &bytes);
    for mut queue in queues(&registered, 4) {
        for from in [&registered, &other] {
            let done = read_one(&mut *queue, read(from, &temp.open(), 0, BLOCK_BYTES, 1));
            assert_eq!(done.result, Ok(5000));
            assert!(done.buf[..5000] == bytes);
        }
    }
}

#[test]
fn dropping_a_queue_gives_back_every_buffer_only_when_nobody_writes_it() {
    let arena = arena();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(BLOCKS * BLOCK_BYTES));
    let file = temp.open();
    for round in 0..6 {
        for mut queue in queues(&arena, BLOCKS) {
            for index in 0..BLOCKS as u64 {
                let offset = index * BLOCK_BYTES as u64;
                assert!(queue.submit(read(&arena, &file, offset, BLOCK_BYTES, index)).is_ok());
            }
            if round % 3 > 0 {
                queue.kick();
            }
            let mut out = Completions::new();
            if round % 3 > 1 {
                queue.poll(&mut out);
            }
            assert_eq!(arena.free(SizeClass::Block), 0, "all are in flight or given out");
            drop(queue);
            drop(out);
            assert_eq!(arena.free(SizeClass::Block), BLOCKS);
            let mut bufs: Vec<_> = std::iter::from_fn(|| arena.alloc(SizeClass::Block)).collect();
            bufs.iter_mut().for_each(|buf| buf.fill(0x5a));
            // The page cache now has what a late read would bring; give one the time to show.
            std::fs::read(&temp.0).unwrap();
            assert!(bufs.iter().all(|buf| buf.iter().all(|&byte| byte == 0x5a)));
        }
    }
}

#[test]
fn an_idle_queue_makes_no_system_call() {
    let arena = arena();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(5000));
    for mut queue in queues(&arena, 4) {
        let mut out = Completions::new();
        for _ in 0..1000 {
            queue.kick();
            queue.poll(&mut out);
        }
        assert_eq!(queue.stats(), DiskStats::default());
        read_one(&mut *queue, read(&arena, &temp.open(), 0, 5000, 1)).result.unwrap();
        let after = queue.stats();
        assert!(after.enters > 0);
        for _ in 0..1000 {
            queue.kick();
            queue.poll(&mut out);
        }
        assert_eq!(queue.stats(), after);
    }
}

#[test]
fn files_in_memory_read_alike_on_every_disk_and_their_copies_are_counted() {
    let arena = arena();
    let bytes = pattern(20_000);
    let file = File::in_memory(bytes.clone());
    let mut queues = queues(&arena, 4);
    queues.push(Box::new(MemDisk::copying(4).unwrap()));
    for mut queue in queues {
        let done = read_one(&mut *queue, read(&arena, &file, 16_384, BLOCK_BYTES, 1));
        assert_eq!(done.result, Ok(3616));
        assert!(done.buf[..3616] == bytes[16_384..]);
        assert!(done.buf[3616..].iter().all(|&byte| byte == 0xa5), "no more than that");
        let zeroes = read_one(&mut *queue, read(&arena, &File::zeroes(1 << 50), 1 << 49, 512, 1));
        assert_eq!(zeroes.result, Ok(512));
        assert!(zeroes.buf[..512].iter().all(|&byte| byte == 0));
        let stats = queue.stats();
        assert_eq!((stats.copied_bytes, stats.bytes, stats.enters), (4128, 4128, 0));
    }
}

#[test]
fn the_null_disk_touches_nothing() {
    let arena = arena();
    let mut disk = MemDisk::null(4).unwrap();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(700));
    for file in [temp.open(), File::in_memory(pattern(700)), File::zeroes(700)] {
        let done = read_one(&mut disk, read(&arena, &file, 512, 512, 1));
        assert_eq!(done.result, Ok(188));
        assert!(done.buf.iter().all(|&byte| byte == 0xa5));
    }
    assert_eq!((disk.stats().copied_bytes, disk.stats().bytes), (0, 3 * 188));
}

#[test]
fn a_disk_in_memory_does_not_read_files() {
    let arena = arena();
    let mut disk = MemDisk::copying(4).unwrap();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(700));
    let done = read_one(&mut disk, read(&arena, &temp.open(), 0, 512, 1));
    assert_eq!(done.result, Err(DiskError::NotInMemory));
}

#[test]
fn files_in_memory_know_what_they_were_told() {
    let when = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let file = File::in_memory(vec![1, 2, 3]);
    let dated = file.clone().with_modified(when);
    assert_eq!((dated.modified(), dated.len(), dated.id()), (when, 3, file.id()));
    assert_ne!(file.id(), File::in_memory(vec![1, 2, 3]).id());
    assert!(dated.is_in_memory() && !dated.is_direct());
}

#[test]
fn auto_always_finds_a_driver_and_bad_depths_are_refused() {
    let arena = arena();
    let temp = Temp::new(&std::env::temp_dir(), &pattern(700));
    let mut queue = open_queue(QueueKind::Auto, &arena, 2).unwrap();
    assert_eq!(read_one(&mut *queue, read(&arena, &temp.open(), 0, 700, 1)).result, Ok(700));
    assert_eq!(queue.name() == "io_uring", queues(&arena, 2).len() == 2);
    for depth in [0, DEPTH_MAX + 1] {
        let error = open_queue(QueueKind::Auto, &arena, depth).err().unwrap().to_string();
        assert!(error.contains("between 1 and 4096"), "{error}");
        assert!(MemDisk::null(depth).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any mix of reads brings what `std::fs::read` brings.
    #[test]
    fn random_reads_agree_with_the_file(
        file_len in 0usize..100_000,
        reads in prop::collection::vec((0usize..220, 0usize..=BLOCK_BYTES, any::<bool>()), 1..60),
        depth in 1usize..20,
    ) {
        let arena = arena();
        let temp = Temp::new(&std::env::temp_dir(), &pattern(file_len));
        let file = temp.open();
        let bytes = std::fs::read(&temp.0).unwrap();
        for mut queue in queues(&arena, depth) {
            let mut done = Vec::new();
            let mut out = Completions::new();
            for (token, &(sector, len, poll)) in reads.iter().enumerate() {
                let offset = (sector * file.align_bytes()) as u64;
                let mut pending = Some(read(&arena, &file, offset, len, token as u64));
                while let Some(read) = pending.take() {
                    pending = queue.submit(read).err();
                    if poll || pending.is_some() {
                        queue.poll(&mut out);
                        done.extend(out.drain(..));
                    }
                }
            }
            done.extend(finish(&mut *queue));
            prop_assert_eq!(done.len(), reads.len());
            done.sort_by_key(|done| done.token);
            for (done, &(sector, len, _)) in done.iter().zip(&reads) {
                let from = (sector * file.align_bytes()).min(file_len);
                let want = &bytes[from..(from + len).min(file_len)];
                prop_assert_eq!(done.result, Ok(want.len()));
                prop_assert!(done.buf[..want.len()] == *want);
            }
        }
    }
}
