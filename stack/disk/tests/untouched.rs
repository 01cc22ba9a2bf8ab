//! The proof that nobody copies: the memory that files are read into may not be read or written by
//! this process at all, and they are sent all the same.

use std::net::{Ipv4Addr, SocketAddrV4};

use millstream_buf::{Arena, ArenaConfig, BLOCK_BYTES, HugePages, SizeClass};
use millstream_core::{Ipv4Config, Shard, ShardConfig};
use millstream_disk::{File, MemDisk};
use millstream_sim::{NullConfig, NullNic};
use millstream_timer::{Clock, VirtualClock};

const BLOCKS: usize = 64;
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 80);

/// Takes all rights on the arena's blocks away as long as it lives.
struct Forbidden {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Forbidden {
    fn new(arena: &Arena) -> Self {
        let (start, _) = arena.region();
        // The blocks come first in the mapping.
        let buf = arena.alloc(SizeClass::Block).unwrap();
        let place = buf.as_ptr() as usize - start.as_ptr() as usize;
        assert!(place < BLOCKS * BLOCK_BYTES, "a block lies where blocks are");
        drop(buf);
        let forbidden = Self { start: start.as_ptr().cast(), bytes: BLOCKS * BLOCK_BYTES };
        forbidden.protect(libc::PROT_NONE);
        forbidden
    }

    fn protect(&self, rights: libc::c_int) {
        // SAFETY: the pages are those of the arena's blocks, which the arena keeps mapped; nobody has
        // a reference into a block while its rights change.
        let result = unsafe { libc::mprotect(self.start, self.bytes, rights) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Forbidden {
    fn drop(&mut self) {
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
    }
}

#[test]
fn no_instruction_touches_a_byte_between_the_disk_and_the_card() {
    send_untouched(0);
    // A card that cuts segments itself.
    send_untouched(65_407);
}

fn send_untouched(tso_bytes_max: u32) {
    const LEN: u64 = 20_000_123;
    let arena = ArenaConfig { frames: 64, blocks: BLOCKS, huge_pages: HugePages::Never };
    let arena = Arena::new(&arena).unwrap();
    // The disk that reads at once and brings nothing stands for a device's own access to memory.
    let disk = Box::new(MemDisk::null(32).unwrap());
    let peers = 7;
    let (nic, received) =
        NullNic::new(NullConfig { peers, tso_bytes_max, ..NullConfig::new(SERVER) }).unwrap();
    let ipv4 = Ipv4Config { address: *SERVER.ip(), prefix_len: 24, gateway: None };
    let clock = VirtualClock::new();
    let config = ShardConfig { secret: [1; 48], ..ShardConfig::new(ipv4) };
    let mut shard = Shard::new(config, nic, clock.clone(), arena.clone(), disk);
    let forbidden = Forbidden::new(&arena);

    let listener = shard.stack().listen(SERVER, 64).unwrap();
    let stack = shard.stack().clone();
    let spawner = stack.clone();
    stack
        .spawn(async move {
            loop {
                let (stream, _) = listener.accept().await;
                let sending =
                    async move { stream.send_file(&File::zeroes(LEN), 1..LEN).await.unwrap() };
                spawner.spawn(sending).unwrap();
            }
        })
        .unwrap();
    for _ in 0..1_000_000 {
        if received.closed() == usize::from(peers) {
            break;
        }
        if shard.turn().work == 0 {
            clock.advance_to(shard.next_deadline().min(clock.now().plus_micros(1000)));
        }
    }
    assert_eq!(received.bytes(), u64::from(peers) * (LEN - 1));
    let metrics = shard.stack().metrics();
    assert_eq!(metrics.spliced_bytes, u64::from(peers) * (LEN - 1));
    assert_eq!(metrics.copied_api_bytes + shard.stack().disk_stats().copied_bytes, 0);
    drop(forbidden);
}
