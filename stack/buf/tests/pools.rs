//! A pool across processes: the reader is this program again, in a process of its own.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use millstream_buf::{Agg, ArenaConfig, Domain, HugePages, Pool, SharedView, SizeClass, SliceRef};

const ROLE: &str = "MILLSTREAM_TEST_READER_FD";
const READER: Domain = Domain(1);

/// What the other process does: maps the pool that it has inherited, reads references from its input,
/// and writes the bytes of each to its error output (the harness has the other one).
#[test]
fn reader() {
    let Ok(fd) = std::env::var(ROLE) else { return };
    // SAFETY: the descriptor was inherited for this purpose and nobody else here has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) };
    let view = SharedView::map(&fd).unwrap();
    let mut slice = [0; 16];
    while std::io::stdin().read_exact(&mut slice).is_ok() {
        let slice = SliceRef::from_bytes(slice);
        let mut out = vec![0; slice.len as usize];
        assert!(view.copy_to(slice, &mut out));
        std::io::stderr().write_all(&out).unwrap();
    }
    // Past the harness, whose words would follow.
    std::process::exit(0);
}

#[test]
fn another_process_reads_an_aggregate_in_place() {
    let config = ArenaConfig { frames: 8, blocks: 8, huge_pages: HugePages::Never };
    let pool = Pool::new(&config, &[READER]).unwrap();
    let mut agg = Agg::new();
    for (class, fill) in [(SizeClass::Frame, 1_u8), (SizeClass::Block, 2), (SizeClass::Block, 3)] {
        let mut buf = pool.arena().alloc(class).unwrap();
        for (at, byte) in buf.iter_mut().enumerate() {
            *byte = fill ^ at as u8;
        }
        agg.append(buf.freeze(100..1900));
    }
    let granted = pool.grant(READER).unwrap();
    // Over the exec to the child.
    // SAFETY: clears a flag of our own descriptor.
    assert_eq!(unsafe { libc::fcntl(granted.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reader", "--nocapture"])
        .env(ROLE, granted.as_raw_fd().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for slice in agg.slices() {
        input.write_all(&pool.describe(slice).unwrap().to_bytes()).unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, agg.to_vec());
    drop(agg);
    assert!(pool.arena().audit().is_clean());
}
