//! How fast a disk brings 16 KiB blocks at random places: `readbench [FILE [SECONDS]]`.
//!
//! Without a file, 256 MiB are written to the directory for temporary files first.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millstream_buf::{Arena, ArenaConfig, BLOCK_BYTES, SizeClass};
use millstream_disk::{Completions, DiskQueue, File, QueueKind, Read, open_queue};

const FILE_BYTES: usize = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let given = args.next().map(PathBuf::from);
    let seconds = args.next().map_or(Ok(2), |arg| arg.parse())?;
    let made = std::env::temp_dir().join(format!("millstream-readbench-{}", std::process::id()));
    if given.is_none() {
        write(&made)?;
    }
    let result = bench(given.as_deref().unwrap_or(&made), Duration::from_secs(seconds));
    if given.is_none() {
        std::fs::remove_file(&made)?;
    }
    result
}

fn write(path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let chunk: Vec<u8> = (0..1 << 20).map(|i: u32| i.wrapping_mul(97) as u8).collect();
    for _ in 0..FILE_BYTES / chunk.len() {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

fn bench(path: &Path, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let arena = Arena::new(&ArenaConfig { frames: 0, blocks: 64, ..ArenaConfig::default() })?;
    let file = File::open(path)?;
    println!(
        "{file:?}, offsets of {} bytes, arena on {:?} pages, 16 KiB reads",
        file.align_bytes(),
        arena.pages()
    );
    for kind in [QueueKind::Uring, QueueKind::Pread] {
        for depth in [1, 32] {
            match open_queue(kind, &arena, depth) {
                Ok(mut queue) => run(&mut *queue, &arena, &file, depth, time)?,
                Err(error) => println!("{kind:?}: {error}"),
            }
        }
    }
    Ok(())
}

fn run(
    queue: &mut dyn DiskQueue,
    arena: &Arena,
    file: &File,
    depth: usize,
    time: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let blocks = file.len() / BLOCK_BYTES as u64;
    if blocks == 0 {
        return Err("the file is shorter than one block of 16 KiB; name a larger one".into());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |buf| {
        // xorshift: any spread will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let offset = state % blocks * BLOCK_BYTES as u64;
        Read { file: file.clone(), offset, len: BLOCK_BYTES, buf, token: 0 }
    };
    for _ in 0..depth {
        let buf = arena.alloc(SizeClass::Block).ok_or("the arena is exhausted")?;
        queue.submit(next(buf)).map_err(|_| "the queue is full")?;
    }
    let start = Instant::now();
    let mut out = Completions::new();
    while start.elapsed() < time {
        queue.poll(&mut out);
        if out.is_empty() {
            // Leaves the core to the kernel's and the workers' threads.
            std::thread::yield_now();
        }
        for done in out.drain(..) {
            done.result?;
            queue.submit(next(done.buf)).map_err(|_| "the queue is full")?;
        }
        queue.kick();
    }
    let seconds = start.elapsed().as_secs_f64();
    let stats = queue.stats();
    println!(
        "{:>8} depth {depth:>2}: {:>8.0} IOPS {:>7.0} MB/s, {:.2} system calls a read",
        queue.name(),
        stats.reads as f64 / seconds,
        stats.bytes as f64 / seconds / 1e6,
        stats.enters as f64 / stats.reads.max(1) as f64
    );
    Ok(())
}
