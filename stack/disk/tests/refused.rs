//! What a sandbox may refuse (io_uring, its registered buffers, `openat2`), refused here by seccomp
//! filters that bind one thread each.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millstream_buf::{Arena, ArenaConfig, HugePages, SizeClass};
use millstream_disk::{
    Completions, DiskQueue, DiskSetupError, File, OpenError, QueueKind, Read, Root, open_queue,
};

/// A system call that fails with `errno`; if `arg1` is given, only with that second argument.
struct Refusal {
    call: libc::c_long,
    arg1: Option<u32>,
    errno: i32,
}

/// Runs `body` on a thread for which the kernel refuses some calls.
fn where_refused<T: Send>(refusals: &[Refusal], body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(refusals);
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn refuse(refusals: &[Refusal]) {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let op = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let number_at = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    // The low half of the second argument.
    let half = if cfg!(target_endian = "big") { 4 } else { 0 };
    let arg1_at = std::mem::offset_of!(libc::seccomp_data, args) as u32 + 8 + half;
    let mut program = Vec::new();
    for refusal in refusals {
        program.push(op(LOAD, number_at, 0));
        program.push(op(
            JUMP_EQUAL,
            refusal.call as u32,
            if refusal.arg1.is_some() { 3 } else { 1 },
        ));
        if let Some(arg1) = refusal.arg1 {
            program.push(op(LOAD, arg1_at, 0));
            program.push(op(JUMP_EQUAL, arg1, 1));
        }
        program.push(op(RETURN, libc::SECCOMP_RET_ERRNO | refusal.errno as u32, 0));
    }
    program.push(op(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the calls, which copy it; they change what this thread may do
    // and touch no memory of ours.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
        ]
    };
    assert_eq!(results, [0, 0], "seccomp: {}", std::io::Error::last_os_error());
}

fn arena() -> Arena {
    Arena::new(&ArenaConfig { frames: 4, blocks: 4, huge_pages: HugePages::Never }).unwrap()
}

fn reads_well(queue: &mut dyn DiskQueue, arena: &Arena) {
    let path = std::env::current_exe().unwrap();
    let file = File::open(&path).unwrap();
    let want = std::fs::read(&path).unwrap();
    let buf = arena.alloc(SizeClass::Block).unwrap();
    assert!(queue.submit(Read { file, offset: 4096, len: 16384, buf, token: 5 }).is_ok());
    let mut out = Completions::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while out.is_empty() {
        queue.poll(&mut out);
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(out[0].result, Ok(16384));
    assert!(out[0].buf[..] == want[4096..4096 + 16384]);
}

#[test]
fn without_io_uring_auto_reads_with_threads() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let refusal = Refusal { call: libc::SYS_io_uring_setup, arg1: None, errno };
        where_refused(&[refusal], || {
            let arena = arena();
            let error = open_queue(QueueKind::Uring, &arena, 4).err().unwrap();
            assert!(matches!(error, DiskSetupError::Refused { .. }));
            assert!(error.to_string().contains("set `disk.queue = \"auto\"`"), "{error}");
            let mut queue = open_queue(QueueKind::Auto, &arena, 4).unwrap();
            assert_eq!(queue.name(), "pread");
            reads_well(&mut *queue, &arena);
        });
    }
}

#[test]
fn without_registered_buffers_io_uring_goes_on() {
    const IORING_REGISTER_BUFFERS: u32 = 0;
    let refusal = Refusal {
        call: libc::SYS_io_uring_register,
        arg1: Some(IORING_REGISTER_BUFFERS),
        errno: libc::ENOMEM,
    };
    where_refused(&[refusal], || {
        let arena = arena();
        let mut queue = match open_queue(QueueKind::Uring, &arena, 4) {
            Ok(queue) => queue,
            Err(DiskSetupError::Refused { source }) => {
                let errno = source.raw_os_error();
                assert!(
                    matches!(errno, Some(libc::ENOSYS | libc::EPERM | libc::EACCES)),
                    "{source}"
                );
                assert!(std::env::var_os("MILLSTREAM_REQUIRE_IO_URING").is_none(), "{source}");
                eprintln!("not run: the kernel refuses io_uring: {source}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(queue.name(), "io_uring");
        reads_well(&mut *queue, &arena);
    });
}

/// A directory with a file and a link in it, removed at the end.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let at = std::env::temp_dir().join(format!("millstream-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("file"), "bytes").unwrap();
        symlink("file", at.join("link")).unwrap();
        Self(at)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn without_openat2_a_root_follows_no_link() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let tree = Tree::new("stepwise");
        where_refused(&[Refusal { call: libc::SYS_openat2, arg1: None, errno }], || {
            let root = Root::open(&tree.0).unwrap();
            assert_eq!(root.open_file(b"file").unwrap().len(), 5);
            assert_eq!(root.open_file(b"link").err(), Some(OpenError::Forbidden));
            assert_eq!(root.stat(b"link").err(), Some(OpenError::Forbidden));
        });
    }
}

#[test]
fn what_the_system_says_has_a_name() {
    let tree = Tree::new("errors");
    let root = Root::open(&tree.0).unwrap();
    for (errno, error) in [
        (libc::EMFILE, OpenError::TooManyOpen),
        (libc::ENFILE, OpenError::TooManyOpen),
        (libc::EACCES, OpenError::Forbidden),
        (libc::EIO, OpenError::Io { errno: libc::EIO }),
    ] {
        let call = libc::SYS_openat2;
        let found = where_refused(&[Refusal { call, arg1: None, errno }], || {
            (root.open_file(b"file").err(), root.stat(b"file").err())
        });
        match found {
            // A root that was opened without openat2 does not notice.
            (None, None) => {
                assert!(std::env::var_os("MILLSTREAM_REQUIRE_IO_URING").is_none(), "no openat2");
                eprintln!("not run: the kernel refuses openat2");
            }
            found => assert_eq!(found, (Some(error), Some(error))),
        }
    }
}
